package nodekit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
)

// ProgramData is where services keep what is theirs: %ProgramData%\moult.
func ProgramData() string {
	dir, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, 0)
	if err != nil {
		dir = `C:\ProgramData`
	}
	return filepath.Join(dir, "moult")
}

// DefaultDataDir is --data where nothing else is said.
var DefaultDataDir = filepath.Join(ProgramData(), "data")

// MakeDataDir makes a directory, if there is none, that only its maker, the system
// and administrators can look into. There is no moment in which others could.
func MakeDataDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	sd, err := privateDescriptor()
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return err
	}
	sa := windows.SecurityAttributes{SecurityDescriptor: sd}
	sa.Length = uint32(unsafe.Sizeof(sa))
	if err := windows.CreateDirectory(name, &sa); err != nil && !errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

// privateDescriptor gives all to the system and to administrators, and to this user
// where he is none now, here and below, and takes nothing over from above.
func privateDescriptor() (*windows.SECURITY_DESCRIPTOR, error) {
	list := "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	if !windows.GetCurrentProcessToken().IsElevated() {
		me, err := ownSID()
		if err != nil {
			return nil, err
		}
		list += "(A;OICI;FA;;;" + me.String() + ")"
	}
	return windows.SecurityDescriptorFromString(list)
}

func ownSID() (*windows.SID, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("find this process's user: %w", err)
	}
	return user.User.Sid, nil
}

// trusted are those whose rights harm nobody: they could do anything anyway.
func trusted() ([]*windows.SID, error) {
	me, err := ownSID()
	if err != nil {
		return nil, err
	}
	sids := []*windows.SID{me}
	for _, known := range []windows.WELL_KNOWN_SID_TYPE{windows.WinLocalSystemSid, windows.WinBuiltinAdministratorsSid, windows.WinCreatorOwnerSid} {
		sid, err := windows.CreateWellKnownSid(known)
		if err != nil {
			return nil, err
		}
		sids = append(sids, sid)
	}
	installer, err := windows.StringToSid("S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464")
	if err != nil {
		return nil, err
	}
	return append(sids, installer), nil
}

// fileDeleteChild is FILE_DELETE_CHILD of winnt.h.
const fileDeleteChild = 0x40

// The rights by which others could put something else in a directory's place, and
// those by which they could put something into it.
const (
	rightsToReplace = windows.DELETE | windows.WRITE_DAC | windows.WRITE_OWNER | fileDeleteChild | windows.GENERIC_ALL
	rightsToAdd     = windows.FILE_WRITE_DATA | windows.FILE_APPEND_DATA | windows.GENERIC_WRITE
	AnyRight        = ^windows.ACCESS_MASK(0)
)

// ForeignRights tells who, but for those to trust, has one of the rights to a
// directory itself; "" when nobody has. It fails on a directory whose owner is not
// to be trusted: owners can take any right.
func ForeignRights(dir string, rights windows.ACCESS_MASK) (who string, err error) {
	sd, err := windows.GetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return "", fmt.Errorf("read who may use %s: %w", dir, err)
	}
	friends, err := trusted()
	if err != nil {
		return "", err
	}
	isFriend := func(sid *windows.SID) bool { return slices.ContainsFunc(friends, sid.Equals) }
	owner, _, err := sd.Owner()
	if err != nil {
		return "", fmt.Errorf("read the owner of %s: %w", dir, err)
	}
	if !isFriend(owner) {
		return "", fmt.Errorf("%s belongs to %s, who could change it; have an administrator own it (takeown /a /f), or choose another directory", dir, accountName(owner))
	}
	acl, _, err := sd.DACL()
	if err != nil {
		return "everybody", nil //nolint:nilerr // no list: nothing is denied
	}
	for i := range acl.AceCount {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(acl, uint32(i), &ace); err != nil {
			return "", err
		}
		if ace.Header.AceType != windows.ACCESS_ALLOWED_ACE_TYPE || ace.Header.AceFlags&windows.INHERIT_ONLY_ACE != 0 {
			continue
		}
		if sid := (*windows.SID)(unsafe.Pointer(&ace.SidStart)); ace.Mask&rights != 0 && !isFriend(sid) {
			return accountName(sid), nil
		}
	}
	return "", nil
}

func accountName(sid *windows.SID) string {
	account, domain, _, err := sid.LookupAccount("")
	switch {
	case err != nil:
		return sid.String()
	case domain == "":
		return account
	}
	return domain + `\` + account
}

// RefuseForeignPath keeps a directory to this user, the system and administrators,
// and refuses one that belongs to somebody else, or of which others could change a
// parent: they could put their own in its place.
func RefuseForeignPath(dir string) error {
	who, err := ForeignRights(dir, AnyRight)
	if err != nil {
		return err
	}
	if who != "" {
		if err := makePrivate(dir); err != nil {
			return err
		}
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	return RefuseForeignParents(real)
}

// RefuseForeignParents refuses a path of which others could exchange a part. What is
// not there yet is made by who asks.
func RefuseForeignParents(path string) error {
	for parent := filepath.Dir(path); ; parent = filepath.Dir(parent) {
		who, err := ForeignRights(parent, rightsToReplace)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if who != "" {
			return fmt.Errorf("%s can be changed by %s, who could put another directory in its place; take that right away (icacls), or choose another directory", parent, who)
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}

// makePrivate takes all rights from others, here and below.
func makePrivate(dir string) error {
	sd, err := privateDescriptor()
	if err != nil {
		return err
	}
	acl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	err = windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, acl, nil)
	if err != nil {
		return fmt.Errorf("keep %s to administrators and this user: %w", dir, err)
	}
	return nil
}

// RefuseForeignBinary refuses an installed binary that others could write to, or put
// another one in the place of: the service runs as LocalSystem.
func RefuseForeignBinary(path string) error {
	dir := filepath.Dir(path)
	who, err := ForeignRights(dir, rightsToReplace|rightsToAdd)
	if err != nil {
		return err
	}
	if who == "" {
		if who, err = ForeignRights(path, rightsToReplace|rightsToAdd); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if who != "" {
		return fmt.Errorf("%s can be written to by %s, who could put another binary in its place; choose a directory of administrators with --binary", dir, who)
	}
	return RefuseForeignParents(dir)
}
