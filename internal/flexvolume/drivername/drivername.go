// Package drivername is what a FlexVolume driver may be called, VENDOR/DRIVER in the API and VENDOR~DRIVER/DRIVER on the disk: the one
// rule of the host that loads drivers and of who installs them.
package drivername

import "regexp"

// ReservedVendor is that of the plugins that are built in: "kubernetes.io~csi" in a pod's directory is theirs.
const ReservedVendor = "kubernetes.io"

var part = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// IsPart says whether s can be a vendor or a driver: 1 to 63 letters, digits, dots, hyphens and underscores, with a letter or digit at
// both ends. It becomes one element of paths.
func IsPart(s string) bool { return part.MatchString(s) }
