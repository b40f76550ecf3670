package driver

// A volume that is attached for reading is staged and published so, whatever the node's calls say: a Kubernetes
// PersistentVolume with spec.csi.readOnly. The attachment tells the node by its publish context.
const contextReadOnly = "readOnly"

func publishContext(readOnly bool) map[string]string {
	if !readOnly {
		return nil
	}
	return map[string]string{contextReadOnly: "true"}
}

func attachedReadOnly(publishContext map[string]string) bool {
	return publishContext[contextReadOnly] == "true"
}
