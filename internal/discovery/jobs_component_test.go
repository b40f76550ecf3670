//go:build component

package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spf13/pflag"
	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	k8stesting "k8s.io/client-go/testing"
)

// runJob plays the Job controller and the kubelet: it runs what a Job's container asks for, on the device that stands on this machine.
func runJob(ctx context.Context, job *batchv1.Job) error {
	c := job.Spec.Template.Spec.Containers[0]
	device := c.Env[0].Value
	if len(c.Args) > 0 { // Berth's own image
		flags := pflag.NewFlagSet("clean-device", pflag.ContinueOnError)
		disk, raw := flags.String("disk", "", ""), flags.Bool("raw", false, "")
		if err := flags.Parse(c.Args[1:]); err != nil {
			return err
		}
		return CleanDevice(ctx, device, *disk, *raw, flags.Args(), func(string) {})
	}
	cmd := exec.CommandContext(ctx, c.Command[0], c.Command[1:]...)
	cmd.Env = append(os.Environ(), c.Env[0].Name+"="+device)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// theJob waits for the volume's Job.
func (h *host) theJob(pv *v1.PersistentVolume) *batchv1.Job {
	h.Helper()
	var job *batchv1.Job
	h.until("its Job", func() (err error) {
		job, err = h.api.BatchV1().Jobs("berth").Get(h.Context(), "cleanup-"+pv.Name, metav1.GetOptions{})
		return err
	})
	return job
}

func (h *host) jobStatus(job *batchv1.Job, status batchv1.JobStatus) {
	h.Helper()
	h.watched("jobs")
	job = job.DeepCopy()
	job.Status = status
	_, err := h.api.BatchV1().Jobs(job.Namespace).UpdateStatus(h.Context(), job, metav1.UpdateOptions{})
	h.must(err)
}

func withJobs(image string) func(*Options) {
	return func(o *Options) { o.Jobs = &Jobs{Namespace: "berth", Image: image, Own: "berth:1"} }
}

// useJobForCleaning: the device is cleaned by a Job, with the programs of the user's image or by Berth's own, and offered again when the
// Job has ended; Job and old volume are gone then.
func TestDeviceIsCleanedByAJob(t *testing.T) {
	script := filepath.Join(t.TempDir(), "mine.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec dd if=/dev/zero of=\"$LOCAL_PV_BLKDEVICE\" bs=1M count=32\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ image, command string }{
		"Berth's image":    {"", ", blockCleanerCommand: [/scripts/dd_zero.sh]"},
		"the default":      {"", ""},
		"the user's image": {"mine:1", ", blockCleanerCommand: [" + script + "]"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.configure(tc.command)
			h.must(os.WriteFile(filepath.Join(h.dir, "config", keyJobs), []byte("true"), 0o644))
			h.must(os.WriteFile(filepath.Join(h.dir, "config", keyTolerations), []byte("- {key: a, operator: Exists}"), 0o644))
			dev := h.loop("disk")
			h.must(os.Symlink(dev, filepath.Join(h.dir, "raw", "disk")))
			h.start(withJobs(tc.image))
			pv := h.offered("raw", "disk")
			h.run("sh", "-c", "tr '\\0' 'x' </dev/zero | dd of="+dev+" bs=1M count=32 iflag=fullblock conv=fsync status=none")
			h.phase(pv, v1.VolumeReleased)
			job := h.theJob(pv)
			pod := job.Spec.Template.Spec
			if job.Labels[v1.LabelHostname] != "n" || job.Labels["pv"] != pv.Name || job.Labels["pvuuid"] != string(pv.UID) || job.OwnerReferences[0].UID != pv.UID ||
				pod.NodeSelector[v1.LabelHostname] != "n" || len(pod.Tolerations) != 1 || !*pod.Containers[0].SecurityContext.Privileged || *pod.AutomountServiceAccountToken ||
				*job.Spec.ActiveDeadlineSeconds != 600 || pod.Containers[0].Env[0].Value != filepath.Join(h.dir, "raw", "disk") {
				t.Errorf("%+v", job)
			}
			h.stop() // a death while the Job runs
			h.start(withJobs(tc.image))
			if _, err := h.volume("raw", "disk"); err != nil {
				t.Fatal(err)
			}
			h.must(runJob(t.Context(), job))
			h.jobStatus(job, batchv1.JobStatus{Succeeded: 1})
			h.again("raw", "disk", func() {
				b, err := os.ReadFile(dev)
				h.must(err)
				if i := strings.IndexByte(string(b), 'x'); i >= 0 || len(b) != 32<<20 {
					t.Errorf("%d bytes, the first of the last claim's at %d", len(b), i)
				}
			})
			h.until("the Job to be gone", func() error {
				list, err := h.api.BatchV1().Jobs("berth").List(t.Context(), metav1.ListOptions{})
				if err == nil && len(list.Items) > 0 {
					err = fmt.Errorf("%d are there", len(list.Items))
				}
				return err
			})
			if n := strings.Count(h.events.String(), "Starting cleanup of Block PV"); n != 1 {
				t.Errorf("%d Jobs were begun:\n%s", n, h.events)
			}
		})
	}
}

// A Job that failed stays and is told; deleted, the disk is cleaned by another. One of a former volume of the name is taken away first. A
// directory is emptied by this process in any case.
func TestJobsThatDoNotEndWell(t *testing.T) {
	h := newHost(t)
	h.must(os.WriteFile(filepath.Join(h.dir, "config", keyJobs), []byte("true"), 0o644))
	h.must(os.Symlink(h.loop("disk"), filepath.Join(h.dir, "raw", "disk")))
	at := h.disk("d0")
	h.start(withJobs(""))
	dir := h.offered("fs", "d0")
	h.must(os.WriteFile(filepath.Join(at, "data"), []byte("x"), 0o600))
	h.phase(dir, v1.VolumeReleased)
	h.again("fs", "d0", func() {})
	pv := h.offered("raw", "disk")
	h.phase(pv, v1.VolumeReleased)
	job := h.theJob(pv)
	h.jobStatus(job, batchv1.JobStatus{Failed: 1, Conditions: []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: v1.ConditionTrue, Reason: "BackoffLimitExceeded", Message: "seven times"}}})
	h.said("the Job has failed: BackoffLimitExceeded: seven times (kubectl -n berth logs job/cleanup-" + pv.Name + "); delete it to have the disk cleaned again")
	former := job.DeepCopy()
	h.must(h.api.BatchV1().Jobs("berth").Delete(t.Context(), job.Name, metav1.DeleteOptions{}))
	again := h.theJob(pv)
	h.stop()
	h.must(h.api.BatchV1().Jobs("berth").Delete(t.Context(), again.Name, metav1.DeleteOptions{}))
	former.ResourceVersion, former.UID, former.Labels["pvuuid"], former.Status = "", "former", "another", batchv1.JobStatus{Succeeded: 1}
	_, err := h.api.BatchV1().Jobs("berth").Create(t.Context(), former, metav1.CreateOptions{})
	h.must(err)
	h.start(withJobs(""))
	h.until("a Job of this volume's", func() error {
		if job := h.theJob(pv); job.Labels["pvuuid"] != string(pv.UID) {
			return errors.New("it is the former's")
		}
		return nil
	})
	// The volume is deleted by hand while the Job works: the disk is not offered before its end.
	h.stop()
	h.must(h.api.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{}))
	h.start(withJobs(""))
	h.said("the Job berth/cleanup-" + pv.Name + " still cleans it")
	h.jobStatus(h.theJob(pv), batchv1.JobStatus{Succeeded: 1})
	h.offered("raw", "disk")
}

// useJobForCleaning that can't be done is refused by name at the start.
func TestJobsThatAreNotPossible(t *testing.T) {
	for name, tc := range map[string]struct {
		jobs    *Jobs
		command string
		node    string
		want    string
	}{
		"no image":                      {&Jobs{Namespace: "berth"}, "", "n", "useJobForCleaning: no image for the Jobs is known: set JOB_CONTAINER_IMAGE"},
		"a program and Berth's image":   {&Jobs{Own: "b"}, ", blockCleanerCommand: [/mine.sh]", "n", "storageClassMap: raw: blockCleanerCommand: /mine.sh is not in Berth's image"},
		"a program and nobody for Jobs": {nil, ", blockCleanerCommand: [/mine.sh]", "n", "storageClassMap: raw: blockCleanerCommand: stat /mine.sh"},
		"a name that is no label":       {&Jobs{Own: "b"}, "", strings.Repeat("n", 64), "useJobForCleaning: Jobs carry the node's name as a label"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.configure(tc.command)
			h.must(os.WriteFile(filepath.Join(h.dir, "config", keyJobs), []byte("true"), 0o644))
			_, err := New(Options{Client: h.api, Informers: informers.NewSharedInformerFactory(h.api, 0), Node: tc.node, Config: filepath.Join(h.dir, "config"), Events: h.events, Jobs: tc.jobs})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// The configuration as a pod has it: each key a link through ..data, which is swapped for another directory in one step.
func TestAMountedConfigMap(t *testing.T) {
	h := newHost(t)
	mounted := filepath.Join(h.dir, "mounted")
	version := func(n int, text string) {
		dir := fmt.Sprintf("..v%d", n)
		h.must(os.MkdirAll(filepath.Join(mounted, dir), 0o755))
		h.must(os.WriteFile(filepath.Join(mounted, dir, keyClasses), []byte(text), 0o644))
		h.must(os.WriteFile(filepath.Join(mounted, dir, keyLabels), []byte(fmt.Sprintf("version: v%d", n)), 0o644))
		h.must(os.Symlink(dir, filepath.Join(mounted, "..data_tmp")))
		h.must(os.Rename(filepath.Join(mounted, "..data_tmp"), filepath.Join(mounted, "..data")))
		h.must(os.RemoveAll(filepath.Join(mounted, fmt.Sprintf("..v%d", n-1))))
	}
	text := fmt.Sprintf("raw: {hostDir: %[1]s/raw, mountDir: %[1]s/raw, volumeMode: Block", h.dir)
	version(1, text+", namePattern: 'a*'}")
	for _, key := range []string{keyClasses, keyLabels} {
		h.must(os.Symlink(filepath.Join("..data", key), filepath.Join(mounted, key)))
	}
	for _, name := range []string{"a1", "b1", "c1"} {
		h.must(os.Symlink(h.loop(name), filepath.Join(h.dir, "raw", name)))
	}
	h.start(func(o *Options) { o.Config = mounted })
	if pv := h.offered("raw", "a1"); pv.Labels["version"] != "v1" {
		t.Errorf("labels %v", pv.Labels)
	}
	version(2, text+", namePattern: '[ab]*'}")
	if pv := h.offered("raw", "b1"); pv.Labels["version"] != "v2" {
		t.Errorf("labels %v", pv.Labels)
	}
	version(3, text+", namePatern: '*'}")
	h.said("the last one stays in force")
	version(4, text+"}")
	if pv := h.offered("raw", "c1"); pv.Labels["version"] != "v4" {
		t.Errorf("labels %v", pv.Labels)
	}
}

// Each write of a cleaning by Job fails, and the process dies at it; the next one ends where an undisturbed one does: wiped, offered again, and
// a Job that a death has left behind does not stand for the cleaning of the next claim's data.
func TestEachWriteOfAJobIsSurvived(t *testing.T) {
	for name, at := range map[string][2]string{"the Job is made": {"create", "jobs"}, "the volume is deleted": {"delete", "persistentvolumes"}, "the Job is deleted": {"delete", "jobs"}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.must(os.WriteFile(filepath.Join(h.dir, "config", keyJobs), []byte("true"), 0o644))
			dev := h.loop("disk")
			h.must(os.Symlink(dev, filepath.Join(h.dir, "raw", "disk")))
			var made atomic.Int64
			h.api.PrependReactor("create", "persistentvolumes", func(a k8stesting.Action) (bool, runtime.Object, error) { // as an API does
				a.(k8stesting.CreateAction).GetObject().(*v1.PersistentVolume).UID = types.UID(fmt.Sprint("volume-", made.Add(1)))
				return false, nil, nil
			})
			failed := make(chan struct{})
			var once atomic.Bool
			h.api.PrependReactor(at[0], at[1], func(k8stesting.Action) (bool, runtime.Object, error) {
				if once.Swap(true) {
					return false, nil, nil
				}
				close(failed)
				return true, nil, errors.New("the connection was lost")
			})
			finish := func(pv *v1.PersistentVolume) {
				job := h.theJob(pv)
				h.must(runJob(t.Context(), job))
				h.jobStatus(job, batchv1.JobStatus{Succeeded: 1})
			}
			h.start(withJobs(""))
			pv := h.offered("raw", "disk")
			h.phase(pv, v1.VolumeReleased)
			if at != [2]string{"create", "jobs"} {
				finish(pv)
			}
			<-failed
			h.stop()
			h.start(withJobs(""))
			if at == [2]string{"create", "jobs"} {
				finish(pv)
			}
			var second *v1.PersistentVolume
			h.until("another volume", func() error {
				if second = h.offered("raw", "disk"); second.UID == pv.UID {
					return errors.New("it is the first")
				}
				return nil
			})
			h.run("sh", "-c", "printf theirs | dd of="+dev+" bs=512 seek=40000 conv=fsync,notrunc status=none")
			h.phase(second, v1.VolumeReleased)
			h.until("a Job of the second volume's", func() error {
				if job := h.theJob(second); job.Labels[jobVolumeUID] != string(second.UID) {
					return fmt.Errorf("it is of %s", job.Labels[jobVolumeUID])
				}
				return nil
			})
			finish(second)
			h.again("raw", "disk", func() {
				if b, err := os.ReadFile(dev); err != nil || strings.Contains(string(b), "theirs") {
					t.Errorf("the second claim's data is left (%v)", err)
				}
			})
		})
	}
}
