package mount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

// nodeJournal is DIR/journal/node.json: what is, or may be, mounted here and for whom. The directories themselves are the truth
// (each plugin keeps beside a mount what it needs to undo it); the journal adds what they do not tell, such as devices and
// the pods' names, for people and for a teardown without the API. It is written behind the operations and not fsynced: it must
// survive our death, and after the machine's nothing is mounted any more.
type nodeJournal struct {
	file string
	last []byte
}

// JournalEntry is one volume in the node journal.
type JournalEntry struct {
	Name       v1.UniqueVolumeName     `json:"name"`
	Plugin     string                  `json:"plugin"`
	Driver     string                  `json:"driver,omitempty"`
	Volume     string                  `json:"volume"`
	Mode       v1.PersistentVolumeMode `json:"mode,omitempty"`
	Attachable bool                    `json:"attachable,omitempty"`
	GlobalPath string                  `json:"globalPath,omitempty"`
	DevicePath string                  `json:"devicePath,omitempty"`
	Pods       []JournalPod            `json:"pods,omitempty"`
}

// JournalPod is one pod of a JournalEntry.
type JournalPod struct {
	UID       types.UID `json:"uid"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	Path      string    `json:"path,omitempty"`
}

type journalFile struct {
	Node    string         `json:"node"`
	Volumes []JournalEntry `json:"volumes"`
}

func newNodeJournal(dataDir string) *nodeJournal {
	return &nodeJournal{file: filepath.Join(dataDir, "journal", "node.json")}
}

// journalLoop writes the journal after changes; those that come while a write is under way share the next.
func (m *Manager) journalLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.journalDue:
		}
		if err := m.journal.write(m.journalNow()); err != nil {
			m.log.Warn("the node journal can't be written", "file", m.journal.file, "err", err)
		}
		// A burst of mounts changes the journal with every step: once in a while is enough for what reads it.
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *Manager) journalNow() journalFile {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := journalFile{Node: m.opts.Node, Volumes: []JournalEntry{}}
	for _, v := range m.volumes {
		e := JournalEntry{
			Name: v.name, Plugin: v.plugin.Name(), Volume: v.specName, Mode: v.mode,
			Attachable: v.attachable, GlobalPath: v.globalPath, DevicePath: v.devicePath,
		}
		if v.lane != e.Plugin {
			e.Driver = v.lane
		}
		for _, u := range v.ordered() {
			e.Pods = append(e.Pods, JournalPod{UID: u.pod, Namespace: u.ref.Namespace, Name: u.ref.Name, Path: u.path})
		}
		j.Volumes = append(j.Volumes, e)
	}
	slices.SortFunc(j.Volumes, func(a, b JournalEntry) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return j
}

func (n *nodeJournal) write(j journalFile) error {
	data, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return err
	}
	if bytes.Equal(data, n.last) {
		return nil
	}
	err = boundary.Do("mount/write-node-journal", func() error {
		if err := os.MkdirAll(filepath.Dir(n.file), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(n.file+".new", data, 0o640); err != nil {
			return err
		}
		return os.Rename(n.file+".new", n.file)
	})
	if err == nil {
		n.last = data
	}
	return err
}

// ReadJournal reads the node journal of a data directory; none is no error.
func ReadJournal(dataDir string) (node string, volumes []JournalEntry, err error) {
	data, err := os.ReadFile(newNodeJournal(dataDir).file)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	return parseJournal(data)
}

func parseJournal(data []byte) (string, []JournalEntry, error) {
	var j journalFile
	if err := json.Unmarshal(data, &j); err != nil {
		return "", nil, err
	}
	return j.Node, j.Volumes, nil
}
