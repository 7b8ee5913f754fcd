package webui

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"moult/consensus/fleet"
)

// codeWrongPassword never leaves this package: who tries a password hears it in
// words of the page or the field.
const codeWrongPassword = "wrong_password"

// codeOf is the code of a refusal; "" of any other error, or none.
func codeOf(err error) string {
	var refused *fleet.Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

// unknownUserHash is compared with the password of a user who does not exist, so
// that the time an answer takes does not tell who does. It is no password's: the
// key is random. It is not made by hashing, or the first attempt would take longer.
var unknownUserHash = formatHash(randomBytes(argonSalt), randomBytes(argonKey))

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// tryPassword returns the user if the password is right, refuses with
// codeWrongPassword if it is not, and with codeTooManyAttempts before it looks.
// It looks only at what all servers together have counted: where nothing can be
// committed, right and wrong passwords get the same answer.
func (u *ui) tryPassword(w http.ResponseWriter, r *http.Request, typed, password string) (fleet.User, error) {
	view := u.View()
	name, network := view.LoginName(typed), clientNetwork(r)
	cost, wait := u.logins.begin(view, name, network)
	if wait > 0 {
		return fleet.User{}, tooManyAttempts(w, wait)
	}
	admitted, err := u.tries.admit(r.Context(), name, network)
	if err != nil {
		return fleet.User{}, err
	}
	if !admitted { // others were faster, here or at another server
		return fleet.User{}, tooManyAttempts(w, u.View().LoginWait(name, network, u.Now()))
	}
	user, right, err := u.checkLogin(r, typed, password)
	switch {
	case err != nil:
		return user, err
	case !right:
		return user, refuse(codeWrongPassword, "wrong name or password")
	}
	cost.refund()
	return user, nil
}

func tooManyAttempts(w http.ResponseWriter, wait time.Duration) error {
	seconds := max(1, int(math.Ceil(wait.Seconds())))
	w.Header().Set("Retry-After", fmt.Sprint(seconds))
	return refuse(codeTooManyAttempts, fmt.Sprintf("too many wrong passwords; wait %d s, then try again", seconds))
}

// checkLogin tells whether the password is the user's.
func (u *ui) checkLogin(r *http.Request, name, password string) (fleet.User, bool, error) {
	if err := u.logins.awaitKDF(r.Context()); err != nil {
		return fleet.User{}, false, err
	}
	defer u.logins.kdf.give()
	user, exists := u.View().UserByName(name)
	hash := user.PasswordHash
	if !exists {
		hash = unknownUserHash
	}
	right, err := CheckPassword(hash, password)
	if err != nil {
		return fleet.User{}, false, fmt.Errorf("check the password of %s: %w", name, err)
	}
	return user, right && exists, nil
}
