//! The keys `user`, `group` and `working_directory`: whom the daemon runs as once its ports and logs are open.
//!
//! Giving up root cannot be taken back, so it comes after everything that needs root. What the process must still be
//! able to change afterwards (pid file, socket files, the directory of `upgrade_sock`) is first [given](Identity::own)
//! to the new user.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use rustix::thread;

use super::files::user_name;

/// A user and group to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// The user's name, for its supplementary groups; none when only a group was named.
    user: Option<String>,
}

/// Why the process cannot run as told.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PrivilegeError {
    #[error("there is no user `{0}` on this machine")]
    UnknownUser(String),
    #[error("there is no group `{0}` on this machine")]
    UnknownGroup(String),
    #[error(
        "user/group: only root can run as someone else; start as root or leave the keys out (this is uid {0})"
    )]
    NotRoot(Uid),
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
}

impl Identity {
    /// Looks up the names (or numbers) of the configuration. `None` when neither is given. Without `group`, the user's
    /// own group is meant; without `user`, the present user.
    pub fn resolve(user: Option<&str>, group: Option<&str>) -> Result<Option<Self>, PrivilegeError> {
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

    /// Whom the process will be, and its predecessor is.
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// Fails when [`assume`](Self::assume) would for want of privileges, so that it can be said before the start.
    pub fn check(&self) -> Result<(), PrivilegeError> {
        if Uid::effective().is_root() || self.is_current() {
            return Ok(());
        }
        Err(PrivilegeError::NotRoot(Uid::effective()))
    }

    /// The identity that the configuration names, which this process can assume.
    ///
    /// # Errors
    /// When there is no such user or group, or only root could become it.
    pub fn required(user: Option<&str>, group: Option<&str>) -> Result<Option<Self>, PrivilegeError> {
        let identity = Self::resolve(user, group)?;
        identity.iter().try_for_each(Self::check)?;
        Ok(identity)
    }

    /// Gives a file that this process has opened or created to this user and group, so that the daemon can open it again. What is no
    /// regular file (`/dev/null`, a FIFO) stays as it is, and so does a file that belongs to the user already.
    ///
    /// # Errors
    /// When the file cannot be given away.
    pub fn give(&self, file: &File) -> io::Result<()> {
        let found = file.metadata()?;
        if !found.is_file() || found.uid() == self.uid.as_raw() {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Gives a file or directory to this user and group. A path that does not exist is passed over.
    pub fn own(&self, path: &Path) -> Result<(), PrivilegeError> {
        let what = || format!("give {} to uid {}", path.display(), self.uid);
        match std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw())) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PrivilegeError::System { what: what(), source })
            }
            _ => Ok(()),
        }
    }

    /// Does something with the rights of this user and group, in a thread that ends with it: the kernel decides what is allowed,
    /// access control lists and closed directories on the way included. For a process that is not root nothing changes.
    ///
    /// # Errors
    /// When the thread cannot become this user.
    pub fn act<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> io::Result<T> {
        if !Uid::effective().is_root() || self.is_current() {
            return Ok(deed());
        }
        std::thread::scope(|scope| {
            let become_and_act = || self.assume_in_thread().map(|()| deed());
            let thread = std::thread::Builder::new().spawn_scoped(scope, become_and_act)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
        })
    }

    /// The user's name, or the number of one without.
    pub fn user_name(&self) -> String {
        user_name(self.uid)
    }

    /// The group's name, or the number of one without.
    pub fn group_name(&self) -> String {
        let group = Group::from_gid(self.gid).ok().flatten();
        group.map_or_else(|| self.gid.to_string(), |group| group.name)
    }

    /// Of this thread alone, unlike [`assume`](Self::assume).
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

    /// Becomes this user and group, for good and in every thread. Nothing is done when the process already is.
    pub fn assume(&self) -> Result<(), PrivilegeError> {
        self.check()?;
        if self.is_current() {
            return Ok(());
        }
        // The order matters: without root's uid neither group call would be allowed.
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

/// Enters the directory that relative paths of the configuration then start from.
pub fn enter_directory(directory: &Path) -> Result<(), PrivilegeError> {
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
    fn nothing_named_means_nothing_to_do() {
        assert_eq!(Identity::resolve(None, None).unwrap(), None);
    }

    #[test]
    fn names_and_numbers_are_the_same_user() {
        let root = Identity::resolve(Some("root"), None).unwrap().unwrap();
        assert_eq!(root, Identity::resolve(Some("0"), None).unwrap().unwrap());
        assert_eq!((root.uid, root.gid), (Uid::from_raw(0), Gid::from_raw(0)));
    }

    #[test]
    fn a_group_may_differ_from_the_users_own() {
        let identity = Identity::resolve(Some("root"), Some("daemon")).unwrap().unwrap();
        let daemon = Group::from_name("daemon").unwrap().unwrap();
        assert_eq!(identity.gid, daemon.gid);
        assert_eq!(Identity::resolve(None, Some("54321")).unwrap().unwrap().gid, Gid::from_raw(54321));
    }

    #[test]
    fn unknown_names_are_named() {
        let error = Identity::resolve(Some("no-such-user"), None).unwrap_err().to_string();
        assert_eq!(error, "there is no user `no-such-user` on this machine");
        let error = Identity::resolve(None, Some("no-such-group")).unwrap_err().to_string();
        assert_eq!(error, "there is no group `no-such-group` on this machine");
    }

    #[test]
    fn the_present_user_needs_no_privileges() {
        let present = Identity { uid: Uid::current(), gid: Gid::current(), user: None };
        present.check().unwrap();
        present.assume().unwrap();
    }

    #[test]
    fn a_deed_is_done_with_the_rights_of_the_user_and_changes_no_other_thread() {
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
    fn a_directory_that_is_not_there_is_named() {
        let error = enter_directory(Path::new("/no/such/directory")).unwrap_err().to_string();
        assert!(error.contains("working_directory /no/such/directory"), "{error}");
    }
}
