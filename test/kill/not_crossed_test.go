package kill

// notCrossed are boundaries that the script cannot cross, with the reason. A line here is a gap that a reader must be
// able to accept.
var notCrossed = map[string]string{}
