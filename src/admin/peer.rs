//! Who is at the other end of the admin socket, by the kernel's word.

use std::fmt;

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid};
use tokio::net::UnixStream;

/// A process that connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    uid: u32,
    gid: u32,
    pid: Option<i32>,
}

impl Peer {
    pub fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
    }

    /// Root, the user of the process, and members of the socket's group. The mode of the socket says the same; it may have been
    /// changed by hand.
    pub fn is_allowed(&self, group: Option<Gid>) -> bool {
        let group = group.unwrap_or_else(getegid);
        if self.uid == 0 || self.uid == geteuid().as_raw() || self.gid == group.as_raw() {
            return true;
        }
        let name = User::from_uid(Uid::from_raw(self.uid)).ok().flatten().map(|user| user.name);
        let members = Group::from_gid(group).ok().flatten().map(|group| group.mem).unwrap_or_default();
        name.is_some_and(|name| members.contains(&name))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match User::from_uid(Uid::from_raw(self.uid)) {
            Ok(Some(user)) => write!(f, "{}", user.name)?,
            _ => write!(f, "uid {}", self.uid)?,
        }
        match self.pid {
            Some(pid) => write!(f, " (pid {pid})"),
            None => Ok(()),
        }
    }
}
