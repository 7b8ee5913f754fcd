package webui

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// maxDownloads bounds the downloads of /agent/binary, which needs no login.
const maxDownloads = 32

// getBinary serves the current agent binary, ranges included. Repr-Digest
// (RFC 9530) carries its sha256.
func (u *ui) getBinary(w http.ResponseWriter, r *http.Request) error {
	os, arch := r.URL.Query().Get("os"), r.URL.Query().Get("arch")
	switch {
	case os == "":
		return badRequest("os: give the operating system, such as ?os=linux&arch=amd64")
	case arch == "":
		return badRequest("arch: give the architecture, such as ?os=linux&arch=amd64")
	}
	if !u.binaries.take() {
		return refuse(codeBusy, "this server has as many downloads open as it takes; try again, or ask another one")
	}
	defer u.binaries.give()
	b, err := u.Binaries.Open(os, arch)
	if errors.Is(err, ErrNoSuchBuild) {
		return refuse(codeNoSuchBuild, "the current release has no binary for "+quoted(os+"/"+arch)+"; publish one that has")
	}
	if err != nil {
		return fmt.Errorf("open the binary for %s/%s: %w", os, arch, err)
	}
	defer b.Content.Close()
	digest, err := hex.DecodeString(b.SHA256)
	if err != nil {
		return fmt.Errorf("digest of the binary for %s/%s: %w", os, arch, err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="moult"`)
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(digest)+":")
	h.Set("ETag", `"`+b.SHA256+`"`)
	h.Set("X-Moult-Version", b.Version)
	http.ServeContent(w, r, "", time.Time{}, b.Content)
	return nil
}
