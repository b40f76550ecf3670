package node

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

const (
	renewEvery    = 10 * time.Second
	leaseDuration = int32(40)
)

// lease keeps the node's Lease in kube-node-lease, the heartbeat that other controllers read. A renewal is one Update
// of the object that the last one returned; only after a conflict it is read again.
type lease struct {
	opts *Options
	uid  types.UID
	held *coordinationv1.Lease
}

func (l *lease) run(ctx context.Context) {
	delay := backoff{base: 200 * time.Millisecond, limit: 7 * time.Second}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := l.renew(ctx); err != nil {
			if ctx.Err() == nil {
				l.opts.Log.Warn("node lease", "err", err)
			}
			timer.Reset(delay.next())
			continue
		}
		delay.reset()
		timer.Reset(renewEvery)
	}
}

func (l *lease) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewEvery)
	defer cancel()
	leases := l.opts.Client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	if l.held == nil {
		held, err := leases.Get(ctx, l.opts.Node, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			held = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
				Name: l.opts.Node, Namespace: v1.NamespaceNodeLease,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: l.opts.Node, UID: l.uid}},
			}}
			l.stamp(held)
			err = boundary.Do("node/create-lease", func() error {
				held, err = leases.Create(ctx, held, metav1.CreateOptions{})
				return err
			})
			if err != nil {
				return fmt.Errorf("create lease %s: %w", l.opts.Node, err)
			}
			l.held = held
			return nil
		case err != nil:
			return fmt.Errorf("read lease %s: %w", l.opts.Node, err)
		}
		l.held = held
	}
	next := l.held.DeepCopy()
	l.stamp(next)
	err := boundary.Do("node/renew-lease", func() (err error) {
		next, err = leases.Update(ctx, next, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		l.held = nil
		return fmt.Errorf("renew lease %s: %w", l.opts.Node, err)
	}
	l.held = next
	return nil
}

func (l *lease) stamp(held *coordinationv1.Lease) {
	now, duration, holder := metav1.NowMicro(), leaseDuration, l.opts.Node
	held.Spec.HolderIdentity, held.Spec.LeaseDurationSeconds, held.Spec.RenewTime = &holder, &duration, &now
}
