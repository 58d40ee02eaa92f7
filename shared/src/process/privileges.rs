//! The keys `user`, `group` and `working_directory`: the identity of the daemon once its ports and logs are open.
//!
//! A process that gives up root cannot get it back, so this step follows everything that needs root. Files that the
//! process must be able to change later (PID file, socket files, the directory of `upgrade_sock`) are first
//! [given](Identity::own) to the new user.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use rustix::thread;
use values::reason;

/// A user and group as which the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    uid: Uid,
    gid: Gid,
    /// The user's name, for its supplementary groups. `None` means that only a group was named.
    user: Option<String>,
}

/// The reason why the process cannot run with the configured identity or directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    #[error("there is no user `{0}` on this machine")]
    UnknownUser(String),
    #[error("there is no group `{0}` on this machine")]
    UnknownGroup(String),
    #[error(
        "user/group: only root can run as another user, but this is the user with UID {0}; start as root or remove the keys"
    )]
    NotRoot(Uid),
    #[error("cannot {what}: {}", reason(source))]
    System { what: String, source: io::Error },
}

impl Identity {
    /// Looks up the names or IDs of the configuration. Without `group` the user's own group is used; without `user` the
    /// current user. `None` means that neither is configured.
    pub(crate) fn resolve(user: Option<&str>, group: Option<&str>) -> Result<Option<Self>, PrivilegeError> {
        if user.is_none() && group.is_none() {
            return Ok(None);
        }
        let user = user.map(find_user).transpose()?;
        let gid = match (group, &user) {
            (Some(group), _) => find_group(group)?,
            (None, Some(user)) => user.gid,
            (None, None) => Gid::current(),
        };
        let uid = user.as_ref().map_or_else(Uid::current, |user| user.uid);
        Ok(Some(Self { uid, gid, user: user.map(|user| user.name) }))
    }

    /// Returns the UID of the user.
    pub(crate) fn uid(&self) -> Uid {
        self.uid
    }

    /// Checks whether this process has the privileges for [`assume`](Self::assume), so that an error is reported before
    /// the start.
    pub(crate) fn check(&self) -> Result<(), PrivilegeError> {
        if Uid::effective().is_root() || self.is_current() {
            return Ok(());
        }
        Err(PrivilegeError::NotRoot(Uid::effective()))
    }

    /// Returns the identity that the configuration names, after checking that this process can assume it.
    ///
    /// # Errors
    /// Fails if there is no such user or group, or if only root could assume it.
    pub(crate) fn required(user: Option<&str>, group: Option<&str>) -> Result<Option<Self>, PrivilegeError> {
        let identity = Self::resolve(user, group)?;
        identity.iter().try_for_each(Self::check)?;
        Ok(identity)
    }

    /// Gives a file that this process has opened or created to this user and group, so that the daemon can open it
    /// again. The owner does not change if the file is not a regular file (`/dev/null`, a FIFO) or already belongs to
    /// the user.
    ///
    /// # Errors
    /// Fails if the owner cannot be changed.
    pub(crate) fn give(&self, file: &File) -> io::Result<()> {
        let found = file.metadata()?;
        if !found.is_file() || found.uid() == self.uid.as_raw() {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Gives a file or directory to this user and group. A path that does not exist is ignored.
    pub(crate) fn own(&self, path: &Path) -> Result<(), PrivilegeError> {
        let what = || format!("give {} to the user with UID {}", path.display(), self.uid);
        match std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw())) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PrivilegeError::System { what: what(), source })
            }
            _ => Ok(()),
        }
    }

    /// Runs `action` with the rights of this user and group, in a thread of its own. The kernel then decides what is
    /// allowed, including access control lists and parent directories. If the process is not root, `action` runs with
    /// the rights of the process.
    ///
    /// # Errors
    /// Fails if the thread cannot assume this identity.
    pub(crate) fn act<T: Send>(&self, action: impl FnOnce() -> T + Send) -> io::Result<T> {
        if !Uid::effective().is_root() || self.is_current() {
            return Ok(action());
        }
        std::thread::scope(|scope| {
            let become_and_act = || self.assume_in_thread().map(|()| action());
            let thread = std::thread::Builder::new().spawn_scoped(scope, become_and_act)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
        })
    }

    /// Returns the user's name, or the UID of a user without a name.
    pub(crate) fn user_name(&self) -> String {
        user_name(self.uid)
    }

    /// Returns the group's name, or the GID of a group without a name.
    pub(crate) fn group_name(&self) -> String {
        let group = Group::from_gid(self.gid).ok().flatten();
        group.map_or_else(|| self.gid.to_string(), |group| group.name)
    }

    /// Assumes this identity in the current thread only, unlike [`assume`](Self::assume).
    fn assume_in_thread(&self) -> io::Result<()> {
        let (uid, gid) = (thread::Uid::from_raw(self.uid.as_raw()), thread::Gid::from_raw(self.gid.as_raw()));
        let groups: Vec<_> =
            self.groups()?.into_iter().map(|gid| thread::Gid::from_raw(gid.as_raw())).collect();
        thread::set_thread_groups(&groups)?;
        thread::set_thread_res_gid(gid, gid, gid)?;
        Ok(thread::set_thread_res_uid(uid, uid, uid)?)
    }

    fn groups(&self) -> nix::Result<Vec<Gid>> {
        match self.user.as_deref().map(CString::new) {
            Some(Ok(user)) => nix::unistd::getgrouplist(&user, self.gid),
            _ => Ok(vec![self.gid]),
        }
    }

    /// Assumes this identity permanently and in every thread. Does nothing if the process already has it.
    pub(crate) fn assume(&self) -> Result<(), PrivilegeError> {
        self.check()?;
        if self.is_current() {
            return Ok(());
        }
        // The groups come first, because they cannot be changed without root's UID.
        self.assume_groups().map_err(|errno| system("set the supplementary groups", errno))?;
        nix::unistd::setgid(self.gid).map_err(|errno| system("set the group", errno))?;
        nix::unistd::setuid(self.uid).map_err(|errno| system("set the user", errno))
    }

    fn assume_groups(&self) -> nix::Result<()> {
        match self.user.as_deref().map(CString::new) {
            Some(Ok(user)) => nix::unistd::initgroups(&user, self.gid),
            _ => nix::unistd::setgroups(&[self.gid]),
        }
    }

    fn is_current(&self) -> bool {
        (Uid::current(), Uid::effective()) == (self.uid, self.uid)
            && (Gid::current(), Gid::effective()) == (self.gid, self.gid)
    }
}

/// Returns the name of a user, or the UID of a user without a name.
pub(crate) fn user_name(uid: Uid) -> String {
    let user = User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// Enters the working directory, to which relative paths of the configuration then refer.
pub(crate) fn enter_directory(directory: &Path) -> Result<(), PrivilegeError> {
    std::env::set_current_dir(directory).map_err(|source| PrivilegeError::System {
        what: format!("enter working_directory {}", directory.display()),
        source,
    })
}

fn find_user(name: &str) -> Result<User, PrivilegeError> {
    let by_number = || name.parse().ok().map(Uid::from_raw).map(User::from_uid).transpose();
    let found = User::from_name(name).and_then(|user| Ok(user.or(by_number()?.flatten())));
    found
        .map_err(|errno| system("look up the user", errno))?
        .ok_or_else(|| PrivilegeError::UnknownUser(name.to_owned()))
}

fn find_group(name: &str) -> Result<Gid, PrivilegeError> {
    let named = Group::from_name(name).map_err(|errno| system("look up the group", errno))?;
    named
        .map(|group| group.gid)
        .or_else(|| name.parse().ok().map(Gid::from_raw))
        .ok_or_else(|| PrivilegeError::UnknownGroup(name.to_owned()))
}

fn system(what: &str, errno: nix::Error) -> PrivilegeError {
    PrivilegeError::System { what: what.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_user_and_group_there_is_no_identity() {
        assert_eq!(Identity::resolve(None, None).unwrap(), None);
    }

    #[test]
    fn a_name_and_its_id_are_the_same_user() {
        let root = Identity::resolve(Some("root"), None).unwrap().unwrap();
        assert_eq!(root, Identity::resolve(Some("0"), None).unwrap().unwrap());
        assert_eq!((root.uid, root.gid), (Uid::from_raw(0), Gid::from_raw(0)));
    }

    #[test]
    fn a_group_can_differ_from_the_users_own() {
        let identity = Identity::resolve(Some("root"), Some("daemon")).unwrap().unwrap();
        let daemon = Group::from_name("daemon").unwrap().unwrap();
        assert_eq!(identity.gid, daemon.gid);
        assert_eq!(Identity::resolve(None, Some("54321")).unwrap().unwrap().gid, Gid::from_raw(54321));
    }

    #[test]
    fn the_error_names_an_unknown_user_or_group() {
        let error = Identity::resolve(Some("no-such-user"), None).unwrap_err().to_string();
        assert_eq!(error, "there is no user `no-such-user` on this machine");
        let error = Identity::resolve(None, Some("no-such-group")).unwrap_err().to_string();
        assert_eq!(error, "there is no group `no-such-group` on this machine");
    }

    #[test]
    fn the_current_user_needs_no_privileges() {
        let current = Identity { uid: Uid::current(), gid: Gid::current(), user: None };
        current.check().unwrap();
        current.assume().unwrap();
    }

    #[test]
    fn an_action_has_the_rights_of_the_user_and_other_threads_keep_theirs() {
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(directory.path(), closed).unwrap();
        let nobody = Identity::resolve(Some("nobody"), None).unwrap().unwrap();
        let list = || std::fs::read_dir(directory.path()).map(drop).map_err(|error| error.kind());
        assert_eq!(nobody.act(list).unwrap(), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(list(), Ok(()), "this thread is still root's");
    }

    #[test]
    fn the_error_names_a_missing_directory() {
        let error = enter_directory(Path::new("/no/such/directory")).unwrap_err().to_string();
        assert!(error.contains("working_directory /no/such/directory"), "{error}");
    }
}
