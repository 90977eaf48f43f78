//! Where a message's body ends: followed byte by byte as it passes (RFC 9112 sections 6 and 7).
//!
//! Strict: there is one way to write a chunk, and everything else is an error, because two readers that forgive
//! differently see two different messages.

/// Extensions and trailers carry nothing anybody needs; a line of them is bounded.
const MAX_LINE: u16 = 1024;

/// How far the body of the current message has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Framing {
    Done,
    /// Bytes that are still to come.
    Length(u64),
    Chunked {
        state: Chunk,
        line: u16,
    },
    UntilClose,
}

/// The place in a chunked body. A number is the size of the chunk, or what is left of its data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Chunk {
    Size {
        size: u64,
        digits: u8,
    },
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// Inside the trailer section; `empty`: at the start of a line.
    Trailer {
        empty: bool,
    },
    TrailerLf {
        empty: bool,
    },
}

impl Framing {
    pub fn chunked() -> Self {
        Framing::Chunked { state: Chunk::Size { size: 0, digits: 0 }, line: 0 }
    }

    /// Takes note of `bytes` and says how many of them belong to this message.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        match self {
            Framing::Done => Ok(0),
            Framing::UntilClose => Ok(bytes.len()),
            Framing::Length(left) => {
                let taken = take(left, bytes.len());
                if *left == 0 {
                    *self = Framing::Done;
                }
                Ok(taken)
            }
            Framing::Chunked { .. } => self.advance_chunked(bytes),
        }
    }

    fn advance_chunked(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while let (Framing::Chunked { state, line }, Some(&byte)) = (&mut *self, bytes.get(at)) {
            if let Chunk::Data(left) = state {
                at += take(left, bytes.len() - at);
                if *left == 0 {
                    *state = Chunk::DataCr;
                }
                continue;
            }
            at += 1;
            *line += 1;
            if *line > MAX_LINE {
                return Err("a chunk's line is too long");
            }
            match state.next(byte)? {
                Some(next) => {
                    if matches!(next, Chunk::Data(_)) || matches!((*state, next), (Chunk::DataLf, _)) {
                        *line = 0;
                    }
                    *state = next;
                }
                None => *self = Framing::Done,
            }
        }
        Ok(at)
    }
}

/// Takes up to `available` off `left`.
fn take(left: &mut u64, available: usize) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= taken as u64;
    taken
}

impl Chunk {
    /// The state after one byte of syntax; `None`: the body ends with it.
    fn next(self, byte: u8) -> Result<Option<Chunk>, &'static str> {
        let text = byte == b'\t' || (byte >= b' ' && byte != 127);
        let digit = char::from(byte).to_digit(16);
        Ok(Some(match (self, byte) {
            (Chunk::Size { size, digits: digits @ 0..15 }, _) if digit.is_some() => {
                Chunk::Size { size: size << 4 | u64::from(digit.unwrap_or_default()), digits: digits + 1 }
            }
            (Chunk::Size { size, digits: 1.. }, b'\r') => Chunk::SizeLf(size),
            (Chunk::Size { size, digits: 1.. }, b';') => Chunk::Extension(size),
            (Chunk::Extension(size), b'\r') => Chunk::SizeLf(size),
            (Chunk::Extension(size), _) if text => Chunk::Extension(size),
            (Chunk::SizeLf(0), b'\n') => Chunk::Trailer { empty: true },
            (Chunk::SizeLf(size), b'\n') => Chunk::Data(size),
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Size { size: 0, digits: 0 },
            (Chunk::Trailer { empty }, b'\r') => Chunk::TrailerLf { empty },
            (Chunk::Trailer { .. }, _) if text => Chunk::Trailer { empty: false },
            (Chunk::TrailerLf { empty: true }, b'\n') => return Ok(None),
            (Chunk::TrailerLf { empty: false }, b'\n') => Chunk::Trailer { empty: true },
            _ => return Err("malformed chunk"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the bytes in pieces of `step` and gives how many belong to the message.
    fn follow(bytes: &[u8], step: usize) -> Result<(usize, bool), &'static str> {
        let mut framing = Framing::chunked();
        let mut taken = 0;
        for piece in bytes.chunks(step) {
            let n = framing.advance(piece)?;
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        Ok((taken, framing == Framing::Done))
    }

    #[test]
    fn a_chunked_body_ends_where_it_says_however_it_is_cut() {
        let body = b"5;a=b\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: v\r\n\r\nGET /next";
        let end = body.len() - b"GET /next".len();
        for step in 1..body.len() {
            assert_eq!(follow(body, step), Ok((end, true)), "{step}");
        }
        assert_eq!(follow(b"0\r\n\r\n", 1), Ok((5, true)));
        assert_eq!(follow(b"5\r\nhel", 3), Ok((6, false)));
    }

    #[test]
    fn what_another_reader_may_read_differently_is_an_error() {
        for body in [
            &b"g\r\n"[..],
            b"5\nhello",
            b"5;\x01\r\n",
            b"-5\r\n",
            b"0x5\r\n",
            b"5 \r\nhello",
            b"5\r\nhelloX\r\n",
            b"fffffffffffffffff\r\n",
            b"5;a\nhello",
            b"0\r\nA: b\n\r\n",
            b"\r\n",
            b";\r\n",
            b"5\r\nhello\n0\r\n\r\n",
        ] {
            for step in [1, 4, 64] {
                assert!(follow(body, step).is_err(), "{:?}", String::from_utf8_lossy(body));
            }
        }
        let long = [b"5;".as_slice(), &[b'a'; 2000], b"\r\n"].concat();
        assert_eq!(follow(&long, 100), Err("a chunk's line is too long"));
    }

    #[test]
    fn a_length_is_counted_down() {
        let mut framing = Framing::Length(5);
        assert_eq!(framing.advance(b"hel"), Ok(3));
        assert_eq!(framing.advance(b"lo GET"), Ok(2));
        assert_eq!(framing, Framing::Done);
        assert_eq!(framing.advance(b"GET"), Ok(0));
    }
}
