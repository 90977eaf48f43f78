//! A name server that says what it is told to: addresses with a time to live, or nothing at all.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

type Records = HashMap<String, (Vec<IpAddr>, u32)>;

pub struct NameServer {
    pub address: SocketAddr,
    records: Arc<Mutex<Option<Records>>>,
    questions: Arc<Mutex<usize>>,
    fails: Arc<AtomicBool>,
}

impl NameServer {
    pub fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let records: Arc<Mutex<Option<Records>>> = Arc::new(Mutex::new(Some(HashMap::new())));
        let questions: Arc<Mutex<usize>> = Arc::default();
        let fails: Arc<AtomicBool> = Arc::default();
        let (known, asked, failing) = (records.clone(), questions.clone(), fails.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                *asked.lock().unwrap() += 1;
                if let Some(records) = known.lock().unwrap().as_ref() {
                    socket.send_to(&answer(&buffer[..length], records, failing.load(Ordering::SeqCst)), from).unwrap();
                }
            }
        });
        Self { address, records, questions, fails }
    }

    /// From now on a name has these addresses, for so many seconds.
    pub fn say(&self, name: &str, addresses: &[&str], seconds: u32) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.records.lock().unwrap().get_or_insert_default().insert(name.to_owned(), (addresses, seconds));
    }

    /// From now on it fails (SERVFAIL) whenever it is asked for an IPv4 address.
    pub fn fail_for_ipv4(&self) {
        self.fails.store(true, Ordering::SeqCst);
    }

    /// From now on it does not answer at all.
    pub fn fall_silent(&self) {
        *self.records.lock().unwrap() = None;
    }

    pub fn questions(&self) -> usize {
        *self.questions.lock().unwrap()
    }
}

/// A message of RFC 1035 section 4 in answer to one question.
fn answer(question: &[u8], records: &Records, fails_for_ipv4: bool) -> Vec<u8> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    let (kind, end) = (question[at + 2], at + 5);
    if fails_for_ipv4 && kind == 1 {
        return [&question[..2], &[0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0], &question[12..end]].concat();
    }
    let known = records.get(&labels.join("."));
    let of_kind = |address: &&IpAddr| if kind == 28 { address.is_ipv6() } else { kind == 1 && address.is_ipv4() };
    let addresses: Vec<&IpAddr> = known.iter().flat_map(|(addresses, _)| addresses).filter(of_kind).collect();
    let mut message = question[..2].to_vec();
    message.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    message.extend(&question[12..end]);
    for address in addresses {
        let bytes: Vec<u8> = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        message.extend([0xc0, 12, 0, kind, 0, 1]);
        message.extend(known.map_or(0, |(_, seconds)| *seconds).to_be_bytes());
        message.extend([0, bytes.len() as u8]);
        message.extend(bytes);
    }
    message
}
