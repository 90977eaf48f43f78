//! Session tickets (RFC 5077, RFC 8446 section 4.6.1): what a client needs to resume, sealed by keys that a process hands to the
//! one that takes over.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};

/// How long a key seals; it opens for as long again.
const ROTATION: Duration = Duration::from_secs(6 * 3600);
const NAME: usize = 16;
const KEY: usize = 32;

/// Seals and opens tickets. A new key takes over every six hours; the one before still opens.
pub struct Tickets(Mutex<Keys>);

struct Keys {
    current: Key,
    previous: Option<Key>,
    since: SystemTime,
}

struct Key {
    name: [u8; NAME],
    bytes: [u8; KEY],
    sealing: RandomizedNonceKey,
}

/// The keys as they are handed to another process.
#[derive(Clone, Serialize, Deserialize)]
pub struct HandedKeys {
    current: ([u8; NAME], [u8; KEY]),
    previous: Option<([u8; NAME], [u8; KEY])>,
    /// Seconds since 1970.
    since: u64,
}

impl Tickets {
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> Result<Self, rustls::Error> {
        Ok(Self(Mutex::new(Keys { current: Key::random()?, previous: None, since: SystemTime::now() })))
    }

    /// With the keys of a process before.
    pub fn handed(keys: &HandedKeys) -> Result<Self, rustls::Error> {
        let previous = keys.previous.map(|(name, bytes)| Key::new(name, bytes)).transpose()?;
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(keys.since);
        Ok(Self(Mutex::new(Keys { current: Key::new(keys.current.0, keys.current.1)?, previous, since })))
    }

    /// The keys, for a process that takes over.
    pub fn hand_over(&self) -> HandedKeys {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        HandedKeys {
            current: (keys.current.name, keys.current.bytes),
            previous: keys.previous.as_ref().map(|key| (key.name, key.bytes)),
            since: keys.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(2 * ROTATION.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes no new key.
        if keys.since.elapsed().is_ok_and(|age| age >= ROTATION) {
            let new = Key::random().ok()?;
            keys.previous = Some(std::mem::replace(&mut keys.current, new));
            keys.since = SystemTime::now();
        }
        keys.current.seal(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = ticket.get(..NAME)?;
        let key = std::iter::once(&keys.current).chain(&keys.previous).find(|key| key.name == name)?;
        key.open(ticket)
    }
}

impl Key {
    fn new(name: [u8; NAME], bytes: [u8; KEY]) -> Result<Self, rustls::Error> {
        let sealing = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| rustls::Error::General("a ticket key".to_owned()))?;
        Ok(Self { name, bytes, sealing })
    }

    fn random() -> Result<Self, rustls::Error> {
        let (mut name, mut bytes) = ([0; NAME], [0; KEY]);
        rand::fill(&mut name).and_then(|()| rand::fill(&mut bytes)).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        Self::new(name, bytes)
    }

    /// Name, nonce, and what was sealed with its tag.
    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let nonce = self.sealing.seal_in_place_append_tag(Aad::from(self.name), &mut sealed).ok()?;
        Some([self.name.as_slice(), nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.get(NAME..)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let plain = self.sealing.open_in_place(nonce, Aad::from(self.name), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_of_before_open_after_a_hand_over_and_a_rotation() {
        let before = Tickets::new().unwrap();
        let ticket = before.encrypt(b"session").unwrap();
        let handed = serde_json::to_string(&before.hand_over()).unwrap();
        let after = Tickets::handed(&serde_json::from_str(&handed).unwrap()).unwrap();
        assert_eq!(after.decrypt(&ticket).as_deref(), Some(b"session".as_slice()));
        after.0.lock().unwrap().since = SystemTime::now() - ROTATION;
        let newer = after.encrypt(b"session").unwrap();
        assert_ne!(newer[..NAME], ticket[..NAME], "another key seals");
        assert_eq!(after.decrypt(&ticket).as_deref(), Some(b"session".as_slice()), "the one before still opens");
        assert_eq!(before.decrypt(&newer), None);
        after.0.lock().unwrap().since = SystemTime::now() - ROTATION;
        after.encrypt(b"session").unwrap();
        assert_eq!(after.decrypt(&ticket), None, "two rotations are its end");
        for damaged in [&ticket[..NAME], &ticket[..NAME + NONCE_LEN], &newer[..newer.len() - 1]] {
            assert_eq!(after.decrypt(damaged), None);
        }
    }
}
