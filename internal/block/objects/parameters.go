package objects

import api "berth.io/berth/api/v1alpha1"

// Plain is a map of parameters as the backends have it; nil for none.
func Plain(parameters map[string]api.Parameter) map[string]string {
	return convert[api.Parameter, string](parameters)
}

// Parameters is a map of parameters as the objects have it; nil for none.
func Parameters(plain map[string]string) map[string]api.Parameter {
	return convert[string, api.Parameter](plain)
}

func convert[From, To ~string](in map[string]From) map[string]To {
	if len(in) == 0 {
		return nil
	}
	out := make(map[string]To, len(in))
	for k, v := range in {
		out[k] = To(v)
	}
	return out
}
