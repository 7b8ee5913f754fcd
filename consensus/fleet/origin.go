package fleet

import "context"

type originKey struct{}

// WithOrigin returns a context under which changes are proposed for a client at
// an IP address: they carry it as their From.
func WithOrigin(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, originKey{}, address)
}

// Origin returns the address of the client on whose behalf ctx is; "" if there is none.
func Origin(ctx context.Context) string {
	address, _ := ctx.Value(originKey{}).(string)
	return address
}
