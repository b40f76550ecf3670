package driver

// publishContextReadOnly tells the node that the volume is attached read-only: it is mounted so, too.
const publishContextReadOnly = "readOnly"

func attachedReadOnly(publishContext map[string]string) bool {
	return publishContext[publishContextReadOnly] == "true"
}
