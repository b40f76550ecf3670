package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/boundary"
)

// Jobs says how devices are cleaned by Jobs, where the configuration has useJobForCleaning.
type Jobs struct {
	// Namespace of the Jobs: the agent's (the original's MY_NAMESPACE).
	Namespace string
	// Image has the programs of the classes' blockCleanerCommand, which run in it as they are written (the original's JOB_CONTAINER_IMAGE).
	Image string
	// Own is Berth's image, whose entry point is berth. Without Image, `berth clean-device` in it does what the original's scripts do.
	Own string
}

// Names of the environment: the original's, and ours for Berth's own image, which a pod does not know of itself.
const (
	EnvJobImage     = "JOB_CONTAINER_IMAGE"
	EnvJobNamespace = "MY_NAMESPACE"
	EnvOwnImage     = "BERTH_IMAGE"
)

// JobsFromEnvironment reads how devices are cleaned by Jobs in a cluster. namespace is the pod's, where the original's name for it is not set.
func JobsFromEnvironment(namespace string) *Jobs {
	return &Jobs{Namespace: cmp.Or(os.Getenv(EnvJobNamespace), namespace), Image: os.Getenv(EnvJobImage), Own: os.Getenv(EnvOwnImage)}
}

// Of a cleaning Job, as the original has them (its pkg/deleter/jobcontroller.go): who looks at Jobs by them goes on to find them, and a Job
// that the original has begun is waited for.
const (
	jobPrefix       = "cleanup-"
	jobContainer    = "cleaner"
	jobVolume       = "pv"
	jobVolumeUID    = "pvuuid"
	jobDevice       = "device"
	jobStarted      = "start-time"
	byJob           = "job"
	jobDeviceVolume = "dev"
	jobDisksVolume  = "disks"
)

var (
	// errJobRuns is no failure: the Job's end wakes the loop.
	errJobRuns = errors.New("a Job cleans it")
	// errJobFailed is a Job that has failed for good. It stays for who looks after it, as the original's.
	errJobFailed = errors.New("the Job has failed")
)

// possible says whether what the configuration asks for can be done here; an error names the field.
func (o *Options) possible(c *Config) error {
	if !c.UseJobs {
		return nil
	}
	if o.Jobs == nil {
		return c.programs() // this process cleans, and so must have them
	}
	if o.Jobs.Image == "" && o.Jobs.Own == "" {
		return fmt.Errorf("%s: no image for the Jobs is known: set %s, or %s to Berth's own", keyJobs, EnvJobImage, EnvOwnImage)
	}
	if problems := validation.IsValidLabelValue(o.Node); len(problems) > 0 {
		return fmt.Errorf("%s: Jobs carry the node's name as a label, and %q can be none: %s", keyJobs, o.Node, problems[0])
	}
	if o.Jobs.Image != "" {
		return nil
	}
	for name, class := range c.Classes {
		if class.BlockCleaner.method == external {
			return fmt.Errorf("%s: %s: blockCleanerCommand: %s is not in Berth's image: set JOB_CONTAINER_IMAGE to one that has it", keyClasses, name, class.BlockCleaner.command[0])
		}
	}
	return nil
}

// byJobs says whether devices are cleaned by Jobs.
func (d *Discovery) byJobs() bool { return d.opts.Jobs != nil && d.config.UseJobs }

// followJobs watches the Jobs of this node from the time on that the configuration asks for them: before, there may be no right to do so.
func (d *Discovery) followJobs(ctx context.Context) {
	if d.jobs != nil || !d.byJobs() {
		return
	}
	selector := labels.SelectorFromSet(labels.Set{v1.LabelHostname: d.opts.Node}).String()
	f := informers.NewSharedInformerFactoryWithOptions(d.opts.Client, 0, informers.WithNamespace(d.opts.Jobs.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = selector }))
	jobs := f.Batch().V1().Jobs()
	_, err := jobs.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { d.Wake() }, UpdateFunc: func(_, _ any) { d.Wake() }, DeleteFunc: func(any) { d.Wake() }})
	if err != nil {
		d.log.Error("the Jobs that clean disks can't be watched", "error", err)
		return
	}
	d.jobs, d.jobsSynced = jobs.Lister(), jobs.Informer().HasSynced
	f.Start(ctx.Done())
	go func() { // what waits for it is not worth a halt of the others
		if cache.WaitForCacheSync(ctx.Done(), d.jobsSynced) {
			d.Wake()
		}
	}()
}

func jobName(volume string) string { return jobPrefix + volume }

// job is the Job that cleans for the volume of that name; nil where there is none.
func (d *Discovery) job(volume string) (*batchv1.Job, error) {
	if d.jobs == nil {
		return nil, nil
	}
	if !d.jobsSynced() {
		return nil, fmt.Errorf("%w: the Jobs of namespace %s are not listed yet (may this agent list them?)", errJobRuns, d.opts.Jobs.Namespace)
	}
	job, err := d.jobs.Jobs(d.opts.Jobs.Namespace).Get(jobName(volume))
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return job, err
}

// ended says whether a Job has come to its end, and why it failed if so.
func jobEnded(job *batchv1.Job) (ended bool, failure string) {
	for _, c := range job.Status.Conditions {
		if c.Type == batchv1.JobFailed && c.Status == v1.ConditionTrue {
			return true, c.Reason + ": " + c.Message
		}
	}
	return job.Status.Succeeded > 0, ""
}

// beingCleaned says that a Job still works at the device of a volume that is no more: it is not offered meanwhile.
func (d *Discovery) beingCleaned(volume string) error {
	job, err := d.job(volume)
	if err != nil || job == nil {
		return err
	}
	if ended, _ := jobEnded(job); ended {
		return nil
	}
	return fmt.Errorf("the Job %s/%s still cleans it", job.Namespace, job.Name)
}

// cleanByJob does the next step of cleaning a device by a Job: make it, wait for it, or take volume and Job away after it.
func (d *Discovery) cleanByJob(ctx context.Context, e entry, pv *v1.PersistentVolume, class Class) (took time.Duration, err error) {
	job, err := d.job(pv.Name)
	if err != nil {
		return 0, err
	}
	if err := d.stillReleased(ctx, pv); err != nil {
		return 0, err
	}
	if job == nil {
		f, _, err := d.holdDevice(e, pv)
		if err != nil {
			return 0, err
		}
		if err := f.Close(); err != nil {
			return 0, err
		}
		return 0, d.createJob(ctx, e, pv, class)
	}
	if job.Labels[jobVolumeUID] != string(pv.UID) { // of a former volume of this name
		if job.DeletionTimestamp == nil {
			err = d.deleteJob(ctx, job, metav1.DeletePropagationForeground) // not gone before its pods are
		}
		return 0, errors.Join(err, errJobRuns)
	}
	ended, failure := jobEnded(job)
	switch {
	case failure != "":
		return 0, fmt.Errorf("%w: %s (kubectl -n %s logs job/%s); delete it to have the disk cleaned again", errJobFailed, failure, job.Namespace, job.Name)
	case !ended:
		return 0, errJobRuns
	}
	f, dev, err := d.holdDevice(e, pv)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	w := wiper{f: f, dev: dev, progress: func(string) {}}
	if err := w.ends(ctx); err != nil {
		return 0, err
	}
	if began, err := time.Parse(time.RFC3339Nano, job.Annotations[jobStarted]); err == nil {
		took = d.now().Sub(began)
	}
	if err := d.deleteVolume(ctx, pv, false); err != nil {
		return 0, err
	}
	// A death here leaves the Job to the garbage collector: the volume owns it.
	if err := d.deleteJob(ctx, job, metav1.DeletePropagationBackground); err != nil {
		d.log.Warn("a Job that has cleaned a disk stays", "job", job.Namespace+"/"+job.Name, "error", err)
	}
	return took, nil
}

// holdDevice opens the device of a released volume for this process alone, if it is the one that was offered and nobody uses it.
func (d *Discovery) holdDevice(e entry, pv *v1.PersistentVolume) (*os.File, device, error) {
	f, dev, err := openDevice(e.look, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT)
	if errors.Is(err, unix.EBUSY) {
		return nil, device{}, fmt.Errorf("%w: %s is mounted, swap, or part of another device%s", errInUse, e.path, deviceMounts(e.look))
	}
	if err != nil {
		return nil, device{}, err
	}
	if err := dev.free(e, pv); err != nil {
		return nil, device{}, errors.Join(err, f.Close())
	}
	return f, dev, nil
}

func (d *Discovery) createJob(ctx context.Context, e entry, pv *v1.PersistentVolume, class Class) error {
	job := d.newJob(e, pv, class)
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err := boundary.Do("discovery/create-job", func() error {
		return d.metrics.request("create", func() error {
			_, err := d.opts.Client.BatchV1().Jobs(job.Namespace).Create(ctx, job, metav1.CreateOptions{})
			return err
		})
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make Job %s/%s: %w", job.Namespace, job.Name, err)
	}
	if err == nil {
		d.opts.Events.Eventf(pv, v1.EventTypeNormal, reasonDelete, "Starting cleanup of Block PV %q by Job %s/%s, this may take a while", pv.Name, job.Namespace, job.Name)
	}
	return errJobRuns
}

func (d *Discovery) deleteJob(ctx context.Context, job *batchv1.Job, how metav1.DeletionPropagation) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	err := boundary.Do("discovery/delete-job", func() error {
		return d.metrics.request("delete", func() error {
			return d.opts.Client.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &job.UID}, PropagationPolicy: &how})
		})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// newJob is the original's, with a deadline, an owner, and without rights in the API. The device's path is the one in the container.
func (d *Discovery) newJob(e entry, pv *v1.PersistentVolume, class Class) *batchv1.Job {
	yes, no := true, false
	inside := filepath.Join(class.MountDir, e.file)
	c := v1.Container{Name: jobContainer, Image: d.opts.Jobs.Image, Command: class.BlockCleaner.written,
		Env:             []v1.EnvVar{{Name: envDevice, Value: inside}},
		SecurityContext: &v1.SecurityContext{Privileged: &yes},
		VolumeMounts:    []v1.VolumeMount{{Name: jobDisksVolume, MountPath: class.MountDir}, {Name: jobDeviceVolume, MountPath: "/dev"}},
	}
	if c.Image == "" {
		c.Image, c.Command = d.opts.Jobs.Own, nil
		c.Args = []string{"clean-device", "--disk=" + pv.Annotations[annDisk]}
		if modeOf(pv) == v1.PersistentVolumeBlock {
			c.Args = append(c.Args, "--raw")
		}
		c.Args = append(append(c.Args, "--"), class.BlockCleaner.written...)
	}
	hostPath := func(name, path string) v1.Volume {
		return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}}}
	}
	within := int64(d.opts.CleanWithin(e.capacity) / time.Second)
	tags := map[string]string{v1.LabelHostname: d.opts.Node, jobVolume: pv.Name, jobVolumeUID: string(pv.UID)}
	notes := map[string]string{jobDevice: inside, jobStarted: d.now().Format(time.RFC3339Nano)}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: jobName(pv.Name), Namespace: d.opts.Jobs.Namespace, Labels: tags, Annotations: notes,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "PersistentVolume", Name: pv.Name, UID: pv.UID}}},
		Spec: batchv1.JobSpec{ActiveDeadlineSeconds: &within, Template: v1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: tags, Annotations: notes},
			Spec: v1.PodSpec{
				Containers: []v1.Container{c}, RestartPolicy: v1.RestartPolicyOnFailure, AutomountServiceAccountToken: &no,
				Volumes:      []v1.Volume{hostPath(jobDisksVolume, class.HostDir), hostPath(jobDeviceVolume, "/dev")},
				NodeSelector: map[string]string{v1.LabelHostname: hostOf(pv, d.opts.Node)},
				Tolerations:  d.config.JobTolerations,
			},
		}},
	}
}

// hostOf is the host name label of the volume's node.
func hostOf(pv *v1.PersistentVolume, node string) string {
	if names := Hostnames(pv); len(names) > 0 {
		return names[0]
	}
	return node
}
