package discovery

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Config is the original's ConfigMap (its docs/provisioner.md, pkg/common/common.go), each key a field.
type Config struct {
	Classes         map[string]Class
	NodeLabels      []string          // nodeLabelsForPV: labels of the node that its volumes get, too
	Labels          map[string]string // labelsForPV
	MinResync       time.Duration     // minResyncPeriod; the pass without an event comes after once to twice of it
	UseNodeNameOnly bool
	SetOwner        bool // setPVOwnerRef: the node owns its volumes, and they go with it
	UseJobs         bool // useJobForCleaning: devices are cleaned by Jobs, where there are any (Options.Jobs)
	JobTolerations  []v1.Toleration
	NotReadyTaint   string // provisionerNotReadyNodeTaintKey where removeNodeNotReadyTaint is true, else empty
	// Notes name what the configuration asks for and is done in another way or not at all, with the reason.
	Notes []string
}

// Class is one entry of storageClassMap.
type Class struct {
	HostDir      string // where pods find the disks: volumes name it
	MountDir     string // where a discovery in a container finds them
	Mode         v1.PersistentVolumeMode
	AccessMode   v1.PersistentVolumeAccessMode
	FSType       string
	NamePattern  string
	Selector     []v1.NodeSelectorTerm
	BlockCleaner cleaner
}

// rawClass is a class as it is written.
type rawClass struct {
	HostDir             string                `json:"hostDir"`
	MountDir            string                `json:"mountDir"`
	BlockCleanerCommand *[]string             `json:"blockCleanerCommand"`
	VolumeMode          string                `json:"volumeMode"`
	AccessMode          string                `json:"accessMode"`
	FsType              string                `json:"fsType"`
	NamePattern         string                `json:"namePattern"`
	Selector            []v1.NodeSelectorTerm `json:"selector"`
}

// The original's keys.
const (
	keyClasses     = "storageClassMap"
	keyNodeLabels  = "nodeLabelsForPV"
	keyLabels      = "labelsForPV"
	keyAlpha       = "useAlphaAPI"
	keyJobs        = "useJobForCleaning"
	keyTolerations = "jobTolerations"
	keyResync      = "minResyncPeriod"
	keyNodeName    = "useNodeNameOnly"
	keyOwner       = "setPVOwnerRef"
	keyTaint       = "removeNodeNotReadyTaint"
	keyTaintKey    = "provisionerNotReadyNodeTaintKey"
	keyImage       = "jobContainerImage" // what one might expect, and is none
)

const defaultResync = 5 * time.Minute

// maxConfigBytes is what a ConfigMap may have.
const maxConfigBytes = 1 << 20

// ParseConfig reads the data of the original's ConfigMap. Errors name the field.
func ParseConfig(data map[string]string) (*Config, error) {
	c := &Config{MinResync: defaultResync}
	var errs []error
	var classes map[string]rawClass
	var removeTaint bool
	taint := "" // the original's default: a taint without a key is on no node
	for _, key := range slices.Sorted(maps.Keys(data)) {
		var period metav1.Duration
		var alpha bool
		into, known := map[string]any{
			keyClasses: &classes, keyNodeLabels: &c.NodeLabels, keyLabels: &c.Labels, keyAlpha: &alpha, keyJobs: &c.UseJobs, keyTolerations: &c.JobTolerations,
			keyResync: &period, keyNodeName: &c.UseNodeNameOnly, keyOwner: &c.SetOwner, keyTaint: &removeTaint, keyTaintKey: &taint,
		}[key]
		if !known {
			said := "no such key; the keys are " + strings.Join(knownKeys, ", ")
			if key == keyImage {
				said = "it is no key, for the original neither: the image of cleaning Jobs is the environment variable JOB_CONTAINER_IMAGE"
			}
			errs = append(errs, fmt.Errorf("%s: %s", key, said))
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(data[key]), into); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s", key, plainYAML(err)))
			continue
		}
		switch {
		case alpha:
			c.Notes = append(c.Notes, keyAlpha+" is ignored: the alpha annotation for node affinity went with Kubernetes 1.10; volumes carry spec.nodeAffinity")
		case period.Duration > 0:
			c.MinResync = period.Duration
		case period.Duration < 0:
			errs = append(errs, fmt.Errorf("%s: %s is below zero", key, period.Duration))
		}
	}
	if removeTaint {
		c.NotReadyTaint = taint
		if problems := validation.IsQualifiedName(taint); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("%s: %q with %s true: %s", keyTaintKey, taint, keyTaint, problems[0]))
		}
	}
	if len(c.JobTolerations) > 0 && !c.UseJobs {
		c.Notes = append(c.Notes, keyTolerations+" is not used: "+keyJobs+" is not true")
	}
	errs = append(errs, c.validLabels()...)
	if _, read := data[keyClasses]; !read {
		errs = append(errs, errors.New(keyClasses+": it is missing; it says which directories are looked at, and for which class"))
	}
	c.Classes = map[string]Class{}
	for _, name := range slices.Sorted(maps.Keys(classes)) {
		class, notes, err := classes[name].read(name, c.UseJobs)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.Classes[name], c.Notes = class, append(c.Notes, notes...)
	}
	errs = append(errs, c.overlaps()...)
	return c, errors.Join(errs...)
}

var knownKeys = []string{keyClasses, keyNodeLabels, keyLabels, keyAlpha, keyJobs, keyTolerations, keyResync, keyNodeName, keyOwner, keyTaint, keyTaintKey}

// programs says whether the cleaning programs of all classes are here.
func (c *Config) programs() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Classes)) {
		if err := c.Classes[name].BlockCleaner.runnable(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: blockCleanerCommand: %w", keyClasses, name, err))
		}
	}
	return errors.Join(errs...)
}

// plainYAML takes the libraries' prefixes off an error.
func plainYAML(err error) string {
	return strings.NewReplacer("error unmarshaling JSON: while decoding JSON: ", "", "error converting YAML to JSON: ", "", "json: ", "",
		"Go value of type ", "", "Go struct field rawClass.", "field ").Replace(err.Error())
}

func (c *Config) validLabels() (errs []error) {
	for _, name := range c.NodeLabels {
		if problems := validation.IsQualifiedName(name); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("%s: %q: %s", keyNodeLabels, name, problems[0]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		for _, e := range metav1validation.ValidateLabels(map[string]string{name: c.Labels[name]}, field.NewPath(keyLabels)) {
			errs = append(errs, fmt.Errorf("%s: %s: %w", keyLabels, name, e))
		}
	}
	return errs
}

// read checks a class and fills in the original's defaults.
func (r rawClass) read(name string, byJobs bool) (c Class, notes []string, err error) {
	var errs []error
	at := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s: %s: %s", keyClasses, name, field, fmt.Sprintf(format, args...)))
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		errs = append(errs, fmt.Errorf("%s: %q is no name of a StorageClass: %s", keyClasses, name, problems[0]))
	}
	c = Class{
		HostDir: r.HostDir, MountDir: r.MountDir, Mode: v1.PersistentVolumeMode(r.VolumeMode), AccessMode: v1.PersistentVolumeAccessMode(r.AccessMode),
		FSType: r.FsType, NamePattern: r.NamePattern, Selector: r.Selector,
	}
	for _, dir := range []struct {
		field string
		path  *string
	}{{"hostDir", &c.HostDir}, {"mountDir", &c.MountDir}} {
		if err := cleanDir(dir.path); err != nil {
			at(dir.field, "%v", err)
		}
	}
	switch c.Mode {
	case "":
		c.Mode = v1.PersistentVolumeFilesystem
	case v1.PersistentVolumeFilesystem, v1.PersistentVolumeBlock:
	default:
		at("volumeMode", "%q is neither Filesystem nor Block", r.VolumeMode)
	}
	switch c.AccessMode {
	case "":
		c.AccessMode = v1.ReadWriteOnce
	case v1.ReadWriteOnce, v1.ReadWriteOncePod, v1.ReadOnlyMany, v1.ReadWriteMany:
	default:
		at("accessMode", "%q is none of ReadWriteOnce, ReadWriteOncePod, ReadOnlyMany, ReadWriteMany", r.AccessMode)
	}
	if strings.ContainsFunc(c.FSType, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '.' || r == '-' || r == '_')
	}) {
		at("fsType", "%q is no name of a filesystem", c.FSType)
	}
	if c.NamePattern == "" {
		c.NamePattern = "*"
	}
	if _, err := filepath.Match(c.NamePattern, ""); err != nil {
		at("namePattern", "%q is no pattern: * and ? stand for anything, [a-z] for one of a set, \\ for the next character itself", c.NamePattern)
	}
	if strings.Contains(c.NamePattern, "/") {
		at("namePattern", "%q has a slash: it is for names in hostDir, not for paths", c.NamePattern)
	}
	for i, term := range c.Selector {
		if len(term.MatchExpressions)+len(term.MatchFields) == 0 {
			at("selector", "term %d is empty, and an empty term matches no node", i+1)
		}
		for _, e := range term.MatchExpressions {
			if problems := validation.IsQualifiedName(e.Key); len(problems) > 0 {
				at("selector", "key %q: %s", e.Key, problems[0])
			}
		}
	}
	command := []string{cleanQuick}
	if r.BlockCleanerCommand != nil {
		command = *r.BlockCleanerCommand
	}
	var note string
	if c.BlockCleaner, note, err = newCleaner(command, byJobs); err != nil {
		at("blockCleanerCommand", "%v", err)
	}
	if note != "" {
		notes = append(notes, fmt.Sprintf("%s: %s: blockCleanerCommand: %s", keyClasses, name, note))
	}
	if c.Mode == v1.PersistentVolumeBlock && c.FSType != "" {
		notes = append(notes, fmt.Sprintf("%s: %s: fsType is without effect: volumeMode is Block", keyClasses, name))
	}
	return c, notes, errors.Join(errs...)
}

// cleanDir makes a directory of the configuration comparable. What leads upwards is refused rather than resolved.
func cleanDir(path *string) error {
	switch {
	case *path == "":
		return errors.New("it is missing")
	case !filepath.IsAbs(*path):
		return fmt.Errorf("%q is not an absolute path", *path)
	case slices.Contains(strings.Split(*path, "/"), ".."):
		return fmt.Errorf("%q has a .. in it", *path)
	case strings.ContainsFunc(*path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%s has control characters in it", strconv.Quote(*path))
	}
	if *path = filepath.Clean(*path); *path == "/" {
		return errors.New("/ is no directory of disks")
	}
	return nil
}

// overlaps finds classes that look for the same names in the same directory. Patterns that differ may be meant to part it; an
// entry that both match is refused when it is there.
func (c *Config) overlaps() (errs []error) {
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Classes)) {
		class := c.Classes[name]
		key := class.HostDir + "\x00" + class.NamePattern
		if other, twice := seen[key]; twice {
			errs = append(errs, fmt.Errorf("%s: %s: hostDir: %s is that of %s, too, with the same namePattern %q: a disk has one class; part them by directory or by namePattern",
				keyClasses, name, class.HostDir, other, class.NamePattern))
		}
		seen[key] = name
	}
	return errs
}
