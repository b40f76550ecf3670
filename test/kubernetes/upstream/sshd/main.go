// sshd ADDR DIR: lets Kubernetes' end-to-end suite into the test cluster's node, which stops and starts the kubelet over SSH. It serves commands
// alone, by a shell with DIR first in its PATH, to whoever has the key that it writes to DIR/key. It lives and dies in the cluster's namespaces.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: sshd ADDR DIR")
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		log.Fatal("sshd: ", err)
	}
}

func serve(address, dir string) error {
	user, err := key(filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	host, err := key("")
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, offered ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(offered.Marshal(), user.PublicKey().Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, channels, requests, err := ssh.NewServerConn(conn, config)
			if err != nil {
				log.Print(err)
				return
			}
			go ssh.DiscardRequests(requests)
			for c := range channels {
				if c.ChannelType() != "session" {
					_ = c.Reject(ssh.UnknownChannelType, "sessions only")
					continue
				}
				go session(c, dir)
			}
		}()
	}
}

// key makes a key, and writes it to a file that a client reads.
func key(file string) (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if file != "" {
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	return ssh.NewSignerFromKey(private)
}

// session runs one command (RFC 4254, section 6.5) and tells its exit status.
func session(c ssh.NewChannel, dir string) {
	channel, requests, err := c.Accept()
	if err != nil {
		log.Print(err)
		return
	}
	defer channel.Close()
	for r := range requests {
		if r.Type != "exec" || len(r.Payload) < 4 {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		cmd := exec.Command("bash", "-c", string(r.Payload[4:]))
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
		status := uint32(0)
		if err := cmd.Run(); err != nil {
			status = 255
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				status = uint32(exit.ExitCode())
			}
		}
		_, _ = channel.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, status))
		return
	}
}
