package node

import (
	"bufio"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// kubernetesVersion is the release whose node behaviour this agent has; clients read it in the kubelet's version.
const kubernetesVersion = "v1.36.3"

// maxPods: a holder costs no process, so the kubelet's 110 would be an invention.
const maxPods = 1000

// machine is what the node's status says about this host.
type machine struct {
	capacity  v1.ResourceList
	addresses []v1.NodeAddress
	info      v1.NodeSystemInfo
}

// inspect reads the host. What cannot be read stays empty: a node without a boot ID is still a node.
func inspect(dataDir, hostname, version string) machine {
	suffix := "berth"
	if version != "" {
		suffix += "." + buildMetadata(version)
	}
	return machine{
		capacity:  Allocatable(dataDir),
		addresses: addresses(hostname),
		info: v1.NodeSystemInfo{
			MachineID:               firstLine("/etc/machine-id"),
			SystemUUID:              firstLine("/sys/class/dmi/id/product_uuid"),
			BootID:                  firstLine("/proc/sys/kernel/random/boot_id"),
			KernelVersion:           kernelRelease(),
			OSImage:                 osImage("/etc/os-release"),
			ContainerRuntimeVersion: "holder://" + strings.TrimPrefix(kubernetesVersion, "v"),
			KubeletVersion:          kubernetesVersion + "+" + suffix,
			OperatingSystem:         runtime.GOOS,
			Architecture:            runtime.GOARCH,
		},
	}
}

// Allocatable is what pods can use of this host: CPUs, memory, number of pods, and the bytes of the filesystem that
// holds the data directory. Nothing is reserved, so it is the capacity too.
func Allocatable(dataDir string) v1.ResourceList {
	list := v1.ResourceList{
		v1.ResourceCPU:  *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		v1.ResourcePods: *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		list[v1.ResourceMemory] = *resource.NewQuantity(int64(info.Totalram)*int64(info.Unit), resource.BinarySI)
	}
	var fs unix.Statfs_t
	if unix.Statfs(dataDir, &fs) == nil {
		list[v1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(fs.Blocks)*fs.Bsize, resource.BinarySI)
	}
	return list
}

// addresses are the host's own address and name. The address is the one that packets to the world would leave from;
// no packet is sent to learn it.
func addresses(hostname string) []v1.NodeAddress {
	ip := "127.0.0.1"
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation ranges
		conn, err := net.Dial("udp", target)
		if err != nil {
			continue
		}
		if local, ok := conn.LocalAddr().(*net.UDPAddr); ok && !local.IP.IsUnspecified() {
			ip = local.IP.String()
		}
		conn.Close()
		break
	}
	return []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: ip}, {Type: v1.NodeHostName, Address: hostname}}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// osImage is PRETTY_NAME of an os-release file.
func osImage(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			if plain, err := strconv.Unquote(value); err == nil {
				return plain
			}
			return strings.Trim(value, `'"`)
		}
	}
	return ""
}

func firstLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}

// buildMetadata makes version fit behind the + of a semantic version.
func buildMetadata(version string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		}
		return '-'
	}, strings.TrimPrefix(version, "v"))
}
