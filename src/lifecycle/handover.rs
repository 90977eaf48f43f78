//! The conversation of two processes of which one takes over from the other: messages, some with a socket, on a pair of
//! sockets that nobody else has.

use std::collections::HashSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use super::changes::few;
use crate::tls::tickets::HandedKeys;

/// Changes when processes of before would not understand each other.
const PROTOCOL: u32 = 2;
/// No message is longer.
const MAX_MESSAGE: usize = 64 << 10;
/// Names in a message have no more bytes: what JSON adds fits as well.
const MAX_NAMES: usize = 8 << 10;

/// What the old process says.
#[derive(Serialize, Deserialize)]
pub enum FromOld {
    Hello {
        protocol: u32,
        listeners: usize,
        tickets: HandedKeys,
        plain_admin: bool,
        state: Option<PathBuf>,
    },
    /// With a socket.
    Listener {
        address: SocketAddr,
        nth: usize,
    },
    /// With a socket.
    PlainAdmin,
    /// With the line to a process that had handed over to the old one and still finishes.
    Predecessor,
    /// The old process has stopped accepting: everything is the new one's.
    Yours,
}

/// What the new process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNew {
    /// The process that takes over, told by the one that has started it and ends now.
    Started {
        pid: u32,
    },
    /// Everything is prepared, nothing is accepted yet.
    Ready {
        version: String,
        #[serde(default)]
        left_out: LeftOut,
    },
    Failed {
        why: String,
    },
    Serving,
    /// It ends in good order, or has handed over in its turn: the old process is not to serve again after its end.
    Settled {
        /// The process that serves then.
        successor: Option<u32>,
    },
}

/// Sites that the new process would answer with 503.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// As many as fit into a message.
    pub names: Vec<String>,
    pub count: usize,
}

impl LeftOut {
    /// The first of them that are not among `here`; `None`: there is none.
    pub fn beyond(&self, here: &HashSet<&str>) -> Option<String> {
        let beyond: Vec<&String> = self.names.iter().filter(|name| !here.contains(name.as_str())).collect();
        match self.count.saturating_sub(here.len()) {
            _ if !beyond.is_empty() => Some(few(&beyond)),
            0 => None,
            // Those that did not fit.
            more => Some(format!("{more} more than are left out now")),
        }
    }

    pub fn of<'a>(sites: impl Iterator<Item = &'a str>) -> Self {
        let (mut names, mut count, mut length) = (Vec::new(), 0, 0);
        for name in sites {
            count += 1;
            length += name.len();
            if length <= MAX_NAMES {
                names.push(name.to_owned());
            }
        }
        Self { names, count }
    }
}

/// One end of the conversation.
pub struct Line(OwnedFd);

/// What a new process gets.
pub struct Inheritance {
    pub listeners: Vec<(SocketAddr, usize, TcpListener)>,
    pub plain_admin: Option<TcpListener>,
    pub tickets: HandedKeys,
    /// The state file that the old process has used.
    pub state: Option<PathBuf>,
}

/// What the old process hands over.
pub struct Estate<'a, S> {
    pub listeners: &'a [(SocketAddr, usize, S)],
    pub plain_admin: Option<&'a TcpListener>,
    pub tickets: HandedKeys,
    pub state: Option<&'a Path>,
}

impl Line {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    pub fn new(end: OwnedFd) -> Self {
        Self(end)
    }

    pub fn send(&self, message: &impl Serialize, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.map(|socket| [socket]);
        if let Some(sockets) = &sockets {
            control.push(SendAncillaryMessage::ScmRights(sockets));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was taken in time")),
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// The next message, waited for at most so long. An end of the conversation is `UnexpectedEof`, silence `TimedOut`.
    pub fn receive<T: for<'d> Deserialize<'d>>(&self, patience: Duration) -> io::Result<(T, Option<OwnedFd>)> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(patience.max(Duration::from_millis(1))))?;
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // It ended with something of ours unread.
                Err(rustix::io::Errno::CONNRESET) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process has hung up"));
                }
                Err(rustix::io::Errno::AGAIN) => return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said in time")),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process has hung up"));
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
        }
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        let message = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default());
        Ok((message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?, socket))
    }

    /// Hands sockets and keys over. `TimedOut`: the other process has taken nothing for so long; what it has not taken yet fills
    /// the line.
    pub fn hand_over(&self, estate: Estate<'_, impl std::ops::Deref<Target = TcpListener>>, patience: Duration) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Send, Some(patience.max(Duration::from_millis(1))))?;
        let Estate { listeners, plain_admin, tickets, state } = estate;
        let hello = FromOld::Hello {
            protocol: PROTOCOL,
            listeners: listeners.len(),
            tickets,
            plain_admin: plain_admin.is_some(),
            state: state.map(Path::to_owned),
        };
        self.send(&hello, None)?;
        for (address, nth, socket) in listeners {
            self.send(&FromOld::Listener { address: *address, nth: *nth }, Some(socket.as_fd()))?;
        }
        match plain_admin {
            Some(socket) => self.send(&FromOld::PlainAdmin, Some(socket.as_fd())),
            None => Ok(()),
        }
    }

    /// Gives the word to serve, and lines to the processes before this one. Not earlier: while somebody has them, those processes do
    /// not learn of this one's end.
    pub fn give_word(&self, predecessors: &[Arc<Line>]) -> io::Result<()> {
        predecessors.iter().try_for_each(|line| self.send(&FromOld::Predecessor, Some(line.0.as_fd())))?;
        self.send(&FromOld::Yours, None)
    }

    /// Waits for the word; gives the lines.
    pub fn hear_word(&self, patience: Duration) -> io::Result<Vec<Line>> {
        let mut predecessors = Vec::new();
        loop {
            match self.receive(patience)? {
                (FromOld::Predecessor, Some(line)) => predecessors.push(Line(line)),
                (FromOld::Yours, _) => return Ok(predecessors),
                _ => return Err(unexpected()),
            }
        }
    }

    /// Takes them.
    pub fn inherit(&self, patience: Duration) -> io::Result<Inheritance> {
        let (FromOld::Hello { protocol, listeners, tickets, plain_admin, state }, _) = self.receive(patience)? else {
            return Err(unexpected());
        };
        if protocol != PROTOCOL {
            return Err(io::Error::other(format!("the old process speaks protocol {protocol}, this one {PROTOCOL}: restart instead")));
        }
        let mut inherited = Inheritance { listeners: Vec::new(), plain_admin: None, tickets, state };
        for _ in 0..listeners {
            let (FromOld::Listener { address, nth }, Some(socket)) = self.receive(patience)? else { return Err(unexpected()) };
            inherited.listeners.push((address, nth, socket.into()));
        }
        if plain_admin {
            let (FromOld::PlainAdmin, Some(socket)) = self.receive(patience)? else { return Err(unexpected()) };
            inherited.plain_admin = Some(socket.into());
        }
        Ok(inherited)
    }
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the old process says something else than expected")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_that_a_new_process_would_lose_fit_into_a_message() {
        let names: Vec<String> = (0..100_000).map(|n| format!("s{n}")).collect();
        let all = LeftOut::of(names.iter().map(String::as_str));
        let (old, new) = Line::pair().unwrap();
        Line::new(new).send(&FromNew::Ready { version: "x".to_owned(), left_out: all.clone() }, None).unwrap();
        let (FromNew::Ready { left_out, .. }, _) = old.receive(Duration::from_secs(5)).unwrap() else { panic!("something else") };
        assert_eq!((left_out.count, &left_out), (100_000, &all));
        let here = |count: usize| names.iter().take(count).map(String::as_str).collect::<HashSet<_>>();
        assert_eq!(left_out.beyond(&here(100_000)), None);
        assert_eq!(left_out.beyond(&here(99_998)).as_deref(), Some("2 more than are left out now"));
        assert_eq!(LeftOut::of(["a", "s1"].into_iter()).beyond(&here(5)).as_deref(), Some("a"));
        assert_eq!(LeftOut::default().beyond(&here(0)), None);
    }

    #[test]
    fn sockets_and_keys_arrive_and_silence_is_told_from_the_end() {
        let (old, new) = Line::pair().unwrap();
        let new = Line::new(new);
        let sockets: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        let tickets = crate::tls::tickets::Tickets::new().unwrap();
        let wanted: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let handed: Vec<_> = sockets.iter().enumerate().map(|(nth, socket)| (wanted, nth, socket)).collect();
        let tickets_handed = tickets.hand_over();
        old.hand_over(
            Estate { listeners: &handed, plain_admin: Some(&plain), tickets: tickets_handed, state: None },
            Duration::from_secs(5),
        )
        .unwrap();
        let got = new.inherit(Duration::from_secs(5)).unwrap();
        let addresses: Vec<_> = got.listeners.iter().map(|(_, nth, socket)| (*nth, socket.local_addr().unwrap())).collect();
        assert_eq!(addresses, sockets.iter().map(|socket| socket.local_addr().unwrap()).enumerate().collect::<Vec<_>>());
        assert_eq!(got.plain_admin.unwrap().local_addr().unwrap(), plain.local_addr().unwrap());
        let (before, older) = Line::pair().unwrap();
        old.give_word(&[Arc::new(Line::new(older))]).unwrap();
        let [older] = new.hear_word(Duration::from_secs(5)).unwrap().try_into().ok().unwrap();
        let alive = older.receive::<FromOld>(Duration::from_millis(20)).err().unwrap();
        assert_eq!(alive.kind(), io::ErrorKind::TimedOut, "the process before the old one still finishes");
        drop(before);
        assert_eq!(older.receive::<FromOld>(Duration::from_secs(5)).err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        let silence = old.receive::<FromNew>(Duration::from_millis(20)).err().unwrap();
        assert_eq!(silence.kind(), io::ErrorKind::TimedOut);
        new.send(&FromNew::Serving, None).unwrap();
        assert_eq!(old.receive::<FromNew>(Duration::from_secs(5)).unwrap().0, FromNew::Serving);
        drop(new);
        assert_eq!(old.receive::<FromNew>(Duration::from_secs(5)).err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        let (old, new) = Line::pair().unwrap();
        old.send(
            &FromOld::Hello { protocol: PROTOCOL + 1, listeners: 0, tickets: tickets.hand_over(), plain_admin: false, state: None },
            None,
        )
        .unwrap();
        let why = Line::new(new).inherit(Duration::from_secs(5)).err().unwrap().to_string();
        assert!(why.contains("restart instead"), "{why}");
    }
}
