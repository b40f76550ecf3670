package snapshotmetadata

import (
	"context"
	"slices"

	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// admit finds out who asks, and that they may get the namespace's VolumeSnapshots. It returns the drivers that the token
// was made for.
func (s *Server) admit(ctx context.Context, token, namespace string) (drivers []string, err error) {
	served := s.audiences()
	if len(served) == 0 {
		return nil, status.Error(codes.Unavailable, "no driver with snapshot metadata is registered now")
	}
	review, err := s.opts.Client.AuthenticationV1().TokenReviews().Create(ctx,
		&authnv1.TokenReview{Spec: authnv1.TokenReviewSpec{Token: token, Audiences: served}}, metav1.CreateOptions{})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the API server could not look at the token: %v", err)
	}
	for _, a := range review.Status.Audiences {
		if slices.Contains(served, a) {
			drivers = append(drivers, a)
		}
	}
	// An API server that knows nothing of audiences authenticates for its own, and says none of ours.
	if !review.Status.Authenticated || len(drivers) == 0 {
		return nil, status.Error(codes.Unauthenticated, "the token is not valid here: make one for the audience that the driver's SnapshotMetadataService names")
	}
	user := review.Status.User
	extra := make(map[string]authzv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authzv1.ExtraValue(v)
	}
	access, err := s.opts.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authzv1.SubjectAccessReview{Spec: authzv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		ResourceAttributes: &authzv1.ResourceAttributes{Verb: "get", Namespace: namespace, Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"},
	}}, metav1.CreateOptions{})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the API server could not look at the rights of %s: %v", user.Username, err)
	}
	if !access.Status.Allowed || access.Status.Denied {
		return nil, status.Errorf(codes.PermissionDenied, "%s may not get volumesnapshots in namespace %s: %s", user.Username, namespace, access.Status.Reason)
	}
	return drivers, nil
}
