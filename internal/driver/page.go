package driver

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A page's token names the last entry of the page before, so that entries made or deleted between two pages neither
// repeat nor hide others.
const tokenPrefix = "after:"

// pageOf returns the entries after token, most of them at most (0: all), and the token of the next page. all is ordered
// by id.
func pageOf[T any](all []T, id func(T) string, token string, most int32) (entries []T, next string, err error) {
	if most < 0 {
		return nil, "", invalid("max_entries is %d: it must not be negative", most)
	}
	if token != "" {
		last, ok := strings.CutPrefix(token, tokenPrefix)
		if !ok || last == "" || len(last) > maxString {
			// ListVolumes Errors, ListSnapshots Errors: "Invalid starting_token".
			return nil, "", status.Errorf(codes.Aborted, "starting_token %.40q is not from this driver: list from the beginning", token)
		}
		from, found := slices.BinarySearchFunc(all, last, func(one T, last string) int { return strings.Compare(id(one), last) })
		if found {
			from++
		}
		all = all[from:]
	}
	if n := int(most); n > 0 && n < len(all) {
		all = all[:n]
		next = tokenPrefix + id(all[n-1])
	}
	return all, next, nil
}
