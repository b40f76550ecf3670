package fsmount

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrOption is a mount option that is not allowed.
var ErrOption = errors.New("mount option not allowed")

// Limits of what a user writes, in bytes.
const (
	optionsLimit = 1024
	valueLimit   = 128
)

// The options are lists of what is allowed, since a new kernel's or a new mount program's option that we have never heard of must not
// be at the disposal of everybody who may make a pod. Left out on purpose, for all:
//
//	suid, dev                     a server's files would become root's programs and this machine's devices
//	bind, move, remount, loop …   another mount than the one that is asked for
//	user, users, owner, noauto, x-…, comment, helper   words of /etc/fstab and of mount(8)
//	context, fscontext …          SELinux labels are the host's to give
var everywhere = words(`ro rw exec noexec nosuid nodev sync async dirsync atime noatime diratime nodiratime relatime norelatime
	strictatime nostrictatime lazytime nolazytime defaults`)

// Left out for NFS: bg (success before it is mounted), retry (the time is bounded here), addr, mountaddr and mounthost (another
// server than the one that is named), clientaddr, and the program numbers of foreign RPC services.
var nfsOptions = words(`vers= nfsvers= minorversion= proto= tcp udp rdma port= mountport= mountproto= mountvers= soft softerr hard
	softreval nosoftreval intr nointr timeo= retrans= rsize= wsize= ac noac acregmin= acregmax= acdirmin= acdirmax= actimeo=
	nconnect= max_connect= trunkdiscovery notrunkdiscovery rdirplus nordirplus sec= xprtsec= sharecache nosharecache resvport noresvport
	lookupcache= fsc nofsc lock nolock cto nocto acl noacl local_lock= migration nomigration namlen= write= fg`)

// Left out for CIFS: credentials, username, password, domain and all their short forms (they belong into the Secret; a file of
// the host named here would be read by root and sent to a server of the user's choice), ip and addr (another server), unc,
// prefixpath and source (another share), cruid and multiuser (other users' keys), backupuid and backupgid (past the access
// lists), rootfs.
var cifsOptions = words(`vers= sec= port= uid= gid= forceuid noforceuid forcegid noforcegid file_mode= dir_mode= iocharset= guest
	cache= actimeo= acregmax= acdirmax= closetimeo= rsize= wsize= bsize= max_credits= echo_interval= handletimeout= soft hard intr nointr
	seal sign noacl acl cifsacl modefromsid idsfromsid nobrl brl forcemandatorylock locallease nolease perm noperm dynperm nodynperm
	setuids nosetuids mfsymlinks nomfsymlinks sfu nosfu unix nounix linux nolinux posix noposix serverino noserverino mapchars nomapchars
	mapposix nomapposix nocase ignorecase user_xattr nouser_xattr strictsync nostrictsync handlecache nohandlecache resilienthandles
	noresilienthandles persistenthandles nopersistenthandles snapshot= multichannel nomultichannel max_channels= rwpidforward fsc
	domainauto netbiosname= servern= sloppy nosharesock tcpnodelay compress nodfs dfs`)

// Of local filesystems those that choose speed against safety for this volume alone.
var localOptions = words(`discard nodiscard barrier nobarrier data= commit= journal_checksum journal_async_commit delalloc nodelalloc
	auto_da_alloc noauto_da_alloc stripe= max_batch_time= min_batch_time= errors= nouuid inode64 inode32 largeio nolargeio
	allocsize= logbufs= logbsize= sunit= swidth= swalloc attr2 compress compress= compress-force= autodefrag noautodefrag space_cache= ssd nossd
	datacow nodatacow datasum nodatasum max_inline= thread_pool= flushoncommit noflushoncommit acl noacl user_xattr nouser_xattr
	init_itable init_itable= noinit_itable`)

// words are the names of options; a name with = takes a value.
func words(list string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(list) {
		name, valued := strings.CutSuffix(w, "=")
		m[name] = m[name] || valued
	}
	return m
}

// parseOptions takes a user's comma-separated options apart. Spaces around a comma and empty pieces are let go.
func parseOptions(list string, allowed map[string]bool) ([]string, error) {
	if len(list) > optionsLimit {
		return nil, fmt.Errorf("%w: the options have %d bytes, at most %d are", ErrOption, len(list), optionsLimit)
	}
	var out []string
	for piece := range strings.SplitSeq(list, ",") {
		piece = strings.Trim(piece, " ")
		if piece == "" || piece == "_netdev" || piece == "defaults" { // words for /etc/fstab's readers
			continue
		}
		name, value, valued := strings.Cut(piece, "=")
		takesValue, known := allowed[name]
		if _, general := everywhere[name]; !known && !general {
			// The value is not shown: `password=` is the likely one.
			return nil, fmt.Errorf("%w: %.40q", ErrOption, name)
		}
		if valued && !takesValue {
			return nil, fmt.Errorf("%w: %s takes no value", ErrOption, name)
		}
		if valued && !plain(value) {
			return nil, fmt.Errorf("%w: the value of %s is empty, longer than %d bytes, or has other characters than letters, digits and . _ : + - @", ErrOption, name, valueLimit)
		}
		out = append(out, piece)
	}
	return out, nil
}

// plain is a value that can be nothing but one value: no comma, quote, space, backslash or control character.
func plain(value string) bool {
	if value == "" || len(value) > valueLimit {
		return false
	}
	for _, c := range []byte(value) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("._:+-@", rune(c)) {
			return false
		}
	}
	return true
}

// named says whether one of the options is called name.
func named(options []string, name string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		key, _, _ := strings.Cut(o, "=")
		return key == name
	})
}

// valueOf is the last value of the option called name.
func valueOf(options []string, name string) string {
	found := ""
	for _, o := range options {
		if key, value, _ := strings.Cut(o, "="); key == name {
			found = value
		}
	}
	return found
}
