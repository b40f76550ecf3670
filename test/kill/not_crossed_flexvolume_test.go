package kill

import "maps"

func init() {
	maps.Copy(notCrossed, map[string]string{
		"flexinstall/install":        installKilled,
		"flexinstall/make-directory": installKilled,
		"flexinstall/remove":         installKilled,

		"fsmount/activate-volume": inMachine,
		"fsmount/create-volume":   inMachine,
		"fsmount/extend-volume":   inMachine,
		"fsmount/flush":           inMachine,
		"fsmount/format":          inMachine,
		"fsmount/grow-filesystem": inMachine,
		"fsmount/make-directory":  inMachine,
		"fsmount/mark-formatted":  inMachine,
		"fsmount/mount":           inMachine,
		"fsmount/open-filesystem": inMachine,
		"fsmount/repair":          "an ext4 must carry the mark of an error, as in a component test of fsmount; e2fsck -p may be killed and run again anywhere",
		"fsmount/share":           inMachine,
		"fsmount/unmount":         inMachine,
	})
}

const (
	inMachine     = "it happens in a FlexVolume driver's own process, on a kernel with NFS, CIFS and device-mapper: test/vm kills the driver there at both sides"
	installKilled = "internal/flexvolume/install's test kills at each crossing"
)
