package plugin

import (
	"reflect"
	"strings"
)

// SourceType names the source of v as the API spells it ("csi", "hostPath", "projected"), for messages to a user.
func SourceType(v *Volume) string {
	switch {
	case v.PV != nil:
		return setField(reflect.ValueOf(v.PV.Spec.PersistentVolumeSource))
	case v.Source != nil:
		return setField(reflect.ValueOf(v.Source.VolumeSource))
	}
	return "unknown"
}

// setField returns the JSON name of the one pointer that is set in a union struct of the API.
func setField(union reflect.Value) string {
	for i := 0; i < union.NumField(); i++ {
		if f := union.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			name, _, _ := strings.Cut(union.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}
