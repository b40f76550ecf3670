//go:build vmguest

package guest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// plugins is the volume plugin directory, filled by TestMain.
const plugins = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"

// Where the servers keep what they serve.
const (
	exported = "/srv/nfs"
	shared   = "/srv/smb"
)

func TestMain(m *testing.M) {
	if os.Getenv("BERTH_IN_VM") == "" {
		fmt.Fprintln(os.Stderr, "this test changes the machine that it runs on: it belongs into the one that test/vm starts")
		os.Exit(1)
	}
	if err := install(os.Getenv("BERTH_FLEXVOLUME")); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func install(program string) error {
	for _, driver := range []string{"nfs", "cifs", "lvm"} {
		dir := filepath.Join(plugins, "berth~"+driver)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Symlink(program, filepath.Join(dir, driver)); err != nil {
			return err
		}
	}
	return os.MkdirAll(kubelet, 0o755)
}

var nfsServer = sync.OnceValue(func() error {
	return script(`
		modprobe nfs; modprobe nfsv4; modprobe nfsd
		mkdir -p ` + exported + ` /var/lib/nfs
		mount -t tmpfs tmpfs ` + exported + `
		mount -t tmpfs tmpfs /var/lib/nfs; mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
		mount -t rpc_pipefs rpc /var/lib/nfs/rpc_pipefs
		mount -t nfsd nfsd /proc/fs/nfsd
		mkdir -p ` + exported + `/vol/a/b; chmod 777 ` + exported + `/vol ` + exported + `/vol/a/b
		ln -s a ` + exported + `/vol/link; ln -s /etc ` + exported + `/vol/out
		echo '` + exported + ` *(rw,fsid=0,no_root_squash,insecure,no_subtree_check)' > /etc/exports
		echo 1 > /proc/fs/nfsd/nfsv4gracetime 2>/dev/null || true
		exportfs -ra; rpc.nfsd -N 3 4; rpc.mountd -N 3`)
})

// ganeshaServer is a server in userspace, as many clusters have one for NFS: another implementation than the kernel's, on a port of its own.
var ganeshaServer = sync.OnceValue(func() error {
	return script(`
		modprobe nfs; modprobe nfsv4
		mkdir -p /srv/ganesha /run/ganesha /var/lib/nfs/ganesha
		mount -t tmpfs tmpfs /srv/ganesha; mkdir -p /srv/ganesha/a/b; chmod 777 /srv/ganesha /srv/ganesha/a/b
		cat > /run/ganesha/conf <<-'C'
		NFS_CORE_PARAM { NFS_Port = ` + ganeshaPort + `; NFS_Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; }
		NFSv4 { Graceless = true; RecoveryBackend = fs; }
		EXPORT { Export_Id = 1; Path = /srv/ganesha; Pseudo = /vol; Access_Type = RW; Squash = No_Root_Squash; SecType = sys; FSAL { Name = VFS; } }
		C
		ganesha.nfsd -f /run/ganesha/conf -L /run/ganesha/log -p /run/ganesha/pid
		for i in $(seq 300); do up=$(ss -Hltn 'sport = :` + ganeshaPort + `'); [ -n "$up" ] && exit 0; sleep 0.1; done
		echo "nfs-ganesha does not listen"; tail -20 /run/ganesha/log; exit 1`)
})

const ganeshaPort = "20490"

// Of the one user that Samba knows. A comma and a quote would end an option, spaces a word.
const (
	smbUser     = "berth"
	smbPassword = `pa,ss =wo"rd credentials=/etc/shadow`
)

var smbServer = sync.OnceValue(func() error {
	return script(`
		modprobe cifs
		mkdir -p ` + shared + `/a/b /run/smb/private; chmod 777 ` + shared + ` ` + shared + `/a/b; ln -s a ` + shared + `/link
		cat > /run/smb/conf <<-'C'
		[global]
		workgroup = T
		server role = standalone server
		smb ports = 445
		interfaces = 127.0.0.1
		bind interfaces only = yes
		lock directory = /run/smb
		state directory = /run/smb
		cache directory = /run/smb
		pid directory = /run/smb
		private dir = /run/smb/private
		ncalrpc dir = /run/smb/ncalrpc
		passdb backend = tdbsam:/run/smb/private/passdb.tdb
		log file = /run/smb/log
		disable netbios = yes
		load printers = no
		server min protocol = SMB3
		[vol]
		path = ` + shared + `
		read only = no
		force user = root
		C
		grep -q '^` + smbUser + `:' /etc/passwd || useradd -M ` + smbUser + `
		printf '%s\n%s\n' '` + smbPassword + `' '` + smbPassword + `' | smbpasswd -c /run/smb/conf -s -a ` + smbUser + `
		smbd -D -s /run/smb/conf
		for i in $(seq 300); do smbd_up=$(ss -Hltn 'sport = :445'); [ -n "$smbd_up" ] && exit 0; sleep 0.1; done
		echo "smbd does not listen"; cat /run/smb/log; exit 1`)
})

func script(text string) error {
	out, err := exec.Command("bash", "-ec", text).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func started(t *testing.T, server func() error) {
	t.Helper()
	if err := server(); err != nil {
		t.Fatal(err)
	}
}

// silentServer accepts connections and never answers. It returns its port.
func silentServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	_, port, _ := strings.Cut(l.Addr().String(), ":")
	return port
}

// proxy forwards a port of its own to another until it is cut: then it holds the connections and says nothing more.
func proxy(t *testing.T, to string) (port string, cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var silent sync.RWMutex
	pump := func(dst, src net.Conn) {
		b := make([]byte, 1<<16)
		for {
			n, err := src.Read(b)
			silent.RLock()
			if _, werr := dst.Write(b[:n]); werr != nil || err == io.EOF {
				silent.RUnlock()
				return
			}
			silent.RUnlock()
			if err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.DialTimeout("tcp", to, 10*time.Second)
			if err != nil {
				c.Close()
				continue
			}
			go pump(up, c)
			go pump(c, up)
		}
	}()
	_, port, _ = strings.Cut(l.Addr().String(), ":")
	return port, silent.Lock
}
