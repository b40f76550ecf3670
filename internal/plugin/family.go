package plugin

// Family is a Plugin that stands for several: each of its drivers has a name of its own, in paths and in unique volume names,
// whether or not it is there now (FlexVolume: "k8s/nfs").
type Family interface {
	Plugin
	// Member tells whose a plugin's name ("k8s/nfs") or a unique volume name ("k8s/nfs/pv1") is.
	Member(name string) (driver string, ok bool)
	// Of is the plugin as one driver has it: what it reads back and takes away is that driver's.
	Of(driver string) Plugin
}

// MemberOf is the name under which a volume's plugin is known outside: that of the driver for a Family, else the plugin's own.
func MemberOf(p Plugin, name string) string {
	if f, ok := p.(Family); ok {
		if driver, ok := f.Member(name); ok {
			return driver
		}
	}
	return p.Name()
}
