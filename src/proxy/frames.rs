//! Where WebSocket frames begin and end (RFC 6455 section 5.2), so that a frame of our own never lands inside another one.

/// Follows the frames of one direction of a tunnel, by their heads alone.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The head that is being read; a head has at most 14 bytes.
    head: [u8; 14],
    read: usize,
    /// Bytes of the current frame's content that are still to come.
    left: u64,
    /// The sender has said goodbye: nothing may follow.
    closed: bool,
}

/// The opcode of a close frame.
const CLOSE: u8 = 8;

impl Frames {
    /// Follows bytes that pass.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= passed as u64;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            if let Some(slot) = self.head.get_mut(self.read) {
                *slot = first;
            }
            self.read += 1;
            bytes = rest;
            if let Some(length) = self.length() {
                self.closed |= self.head[0] & 0x0F == CLOSE;
                (self.left, self.read) = (length, 0);
            }
        }
    }

    /// The length of the content, once the head is complete.
    fn length(&self) -> Option<u64> {
        let second = self.head[1];
        let extended = match second & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        if self.read < 2 || self.read < 2 + extended + mask {
            return None;
        }
        Some(match extended {
            0 => u64::from(second & 0x7F),
            _ => self.head.iter().skip(2).take(extended).fold(0, |length, byte| length << 8 | u64::from(*byte)),
        })
    }

    /// Whether another frame may begin here.
    pub(super) fn may_end(&self) -> bool {
        self.left == 0 && self.read == 0 && !self.closed
    }
}

/// A close frame that says that the server goes away (RFC 6455 section 7.4.1), as a server or, masked, as a client sends it.
pub(super) fn going_away(masked: bool) -> &'static [u8] {
    // A mask of zeros is a mask; what it hides is no secret.
    if masked { b"\x88\x82\x00\x00\x00\x00\x03\xE9" } else { b"\x88\x02\x03\xE9" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        let mask = if masked { 0x80 } else { 0 };
        match length {
            0..=125 => bytes.push(mask | length as u8),
            126..=0xFFFF => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(if masked { &[1, 2, 3, 4][..] } else { &[] });
        // Content that looks like heads.
        bytes.extend(std::iter::repeat_n(0x88, length));
        bytes
    }

    #[test]
    fn frames_are_followed_however_they_arrive() {
        let lengths = [0, 1, 125, 126, 300, 65_535, 70_000];
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for (index, length) in lengths.into_iter().enumerate() {
            stream.extend(frame(2, length, index % 2 == 0));
            ends.push(stream.len());
        }
        for piece in [1, 2, 3, 7, 1000, stream.len()] {
            let (mut frames, mut at) = (Frames::default(), 0);
            for bytes in stream.chunks(piece) {
                frames.advance(bytes);
                at += bytes.len();
                assert_eq!(frames.may_end(), ends.contains(&at), "after {at} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        let mut frames = Frames::default();
        frames.advance(&frame(1, 5, true));
        assert!(frames.may_end());
        frames.advance(going_away(true));
        assert!(!frames.may_end() && frames.left == 0 && frames.read == 0);
        let mut frames = Frames::default();
        frames.advance(going_away(false));
        assert!(frames.closed && frames.left == 0);
    }
}
