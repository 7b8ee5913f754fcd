package webui

import (
	"net"
	"net/http"
	"net/netip"

	"moult/consensus/fleet"
)

// FromClients lets the changes that requests ask for tell in the audit where the
// requests came from.
func FromClients(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(fleet.WithOrigin(r.Context(), clientAddress(r))))
	})
}

// clientAddress is the IP address that a request's connection came from; "" if
// there is none. Headers such as X-Forwarded-For are what a client says, and
// count for nothing.
func clientAddress(r *http.Request) string {
	if ip, ok := clientIP(r); ok {
		return ip.String()
	}
	return ""
}

func clientIP(r *http.Request) (netip.Addr, bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	ip, err := netip.ParseAddr(host)
	return ip.Unmap().WithZone(""), err == nil
}

// networkBits is how much of an IPv6 address names a network: one customer of a
// provider has all addresses below that.
const networkBits = 64

// clientNetwork is under what a client's wrong passwords are counted: its IPv4
// address, or the network of its IPv6 address.
func clientNetwork(r *http.Request) string {
	ip, ok := clientIP(r)
	switch {
	case !ok:
		return "unknown"
	case ip.Is4() || ip.IsLoopback():
		return ip.String()
	}
	return netip.PrefixFrom(ip, networkBits).Masked().String()
}
