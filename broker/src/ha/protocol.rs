//! Apache's HA stream, as 4.9.7 and 5.3.3 speak it: pure, and indifferent to how the network cuts the bytes.
//!
//! Slave to master: 8 bytes, the end of the slave's log. Master to slave: 8 bytes position, 4 bytes size, so many bytes of
//! the log; size 0 is a heartbeat. All numbers are big-endian.
//!
//! Between our own brokers the first report may be the complement of a position, which no stock broker sends: "exactly
//! from there", where a plain 0 means "from the begin of your last file".

/// Bytes of a report.
pub const REPORT_BYTES: usize = 8;
/// Bytes in front of a chunk's data.
pub const HEADER_BYTES: usize = 12;
/// Largest chunk that is sent or taken: a stock slave reads into a buffer of 4 MiB.
pub const MAX_CHUNK: u32 = (4 << 20) - HEADER_BYTES as u32;

/// Where a slave wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A stock slave without a log: the begin of the master's last file.
    LastFile,
    /// The end of the slave's log.
    At(u64),
    /// The same from one of our own slaves, which compared its history with the master's before.
    Exactly(u64),
}

impl Start {
    /// The meaning of a connection's first report.
    pub fn from_report(report: i64) -> Self {
        match u64::try_from(report) {
            Ok(0) => Self::LastFile,
            Ok(position) => Self::At(position),
            Err(_) => Self::Exactly(!report as u64),
        }
    }

    /// The first report of a connection.
    pub fn report(self) -> [u8; REPORT_BYTES] {
        match self {
            Self::LastFile => [0; REPORT_BYTES],
            Self::At(position) => position.to_be_bytes(),
            Self::Exactly(position) => (!position).to_be_bytes(),
        }
    }
}

/// Puts reports together from what the socket gives.
#[derive(Debug, Default)]
pub struct ReportReader {
    partial: [u8; REPORT_BYTES],
    have: usize,
}

impl ReportReader {
    /// Calls `take` with each report that is complete now.
    pub fn feed(&mut self, mut input: &[u8], mut take: impl FnMut(i64)) {
        while !input.is_empty() {
            let n = input.len().min(REPORT_BYTES - self.have);
            self.partial[self.have..self.have + n].copy_from_slice(&input[..n]);
            self.have += n;
            input = &input[n..];
            if self.have == REPORT_BYTES {
                self.have = 0;
                take(i64::from_be_bytes(self.partial));
            }
        }
    }
}

/// The 12 bytes in front of a chunk.
pub fn encode_header(position: u64, size: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&position.to_be_bytes());
    header[8..].copy_from_slice(&size.to_be_bytes());
    header
}

/// The stream does not follow the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of {size} bytes at {position} cannot be: this is not a replication stream")]
pub struct Malformed {
    position: i64,
    size: i32,
}

/// What a master's bytes mean, piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Nothing new; the master will go on at this position.
    Heartbeat(u64),
    /// A chunk of this size follows.
    Begin {
        /// Position of its first byte.
        position: u64,
        /// Bytes that follow.
        size: u32,
    },
    /// Bytes of the log, as far as they have arrived.
    Data {
        /// Position of the first of them.
        position: u64,
        /// The bytes.
        bytes: &'a [u8],
        /// They are the last of their chunk.
        last: bool,
    },
}

/// Reads a master's stream without waiting for whole chunks.
#[derive(Debug, Default)]
pub struct ChunkReader {
    header: [u8; HEADER_BYTES],
    have: usize,
    position: u64,
    left: u32,
}

impl ChunkReader {
    /// The next piece, taken off `input`; `None` when it needs more.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Malformed> {
        if input.is_empty() {
            return Ok(None);
        }
        if self.left > 0 {
            let n = input.len().min(self.left as usize);
            let (bytes, rest) = input.split_at(n);
            *input = rest;
            let position = self.position;
            self.position += n as u64;
            self.left -= n as u32;
            return Ok(Some(Piece::Data {
                position,
                bytes,
                last: self.left == 0,
            }));
        }
        let n = input.len().min(HEADER_BYTES - self.have);
        let (bytes, rest) = input.split_at(n);
        *input = rest;
        self.header[self.have..self.have + n].copy_from_slice(bytes);
        self.have += n;
        if self.have < HEADER_BYTES {
            return Ok(None);
        }
        self.have = 0;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.header;
        let position = i64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let size = i32::from_be_bytes([i, j, k, l]);
        match (u64::try_from(position), u32::try_from(size)) {
            (Ok(position), Ok(0)) => Ok(Some(Piece::Heartbeat(position))),
            (Ok(position), Ok(size)) if size <= MAX_CHUNK => {
                self.position = position;
                self.left = size;
                Ok(Some(Piece::Begin { position, size }))
            }
            _ => Err(Malformed { position, size }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a stream with the data of each chunk put together again, whatever the cuts.
    fn read(parts: &[&[u8]]) -> Vec<(u64, Vec<u8>)> {
        let mut reader = ChunkReader::default();
        let mut chunks: Vec<(u64, Vec<u8>)> = Vec::new();
        for part in parts {
            let mut input = *part;
            while let Some(piece) = reader.next(&mut input).unwrap() {
                match piece {
                    Piece::Heartbeat(position) | Piece::Begin { position, .. } => {
                        chunks.push((position, Vec::new()))
                    }
                    Piece::Data {
                        position, bytes, ..
                    } => {
                        let (begin, data) = chunks.last_mut().unwrap();
                        assert_eq!(*begin + data.len() as u64, position);
                        data.extend_from_slice(bytes);
                    }
                }
            }
        }
        chunks
    }

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (position, data) in [(0, &b""[..]), (7, b"first"), (12, b""), (12, b"second one")] {
            bytes.extend_from_slice(&encode_header(position, data.len() as u32));
            bytes.extend_from_slice(data);
        }
        bytes
    }

    #[test]
    fn a_stream_torn_at_any_two_bytes_reads_the_same() {
        let whole = stream();
        let expected = read(&[&whole]);
        assert_eq!(expected.len(), 4);
        assert_eq!(expected[3], (12, b"second one".to_vec()));
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let parts = [&whole[..first], &whole[first..second], &whole[second..]];
                assert_eq!(read(&parts), expected, "torn at {first} and {second}");
            }
        }
    }

    #[test]
    fn reports_torn_at_any_byte_read_the_same() {
        let reports = [0i64, 430, !7, i64::MAX];
        let whole: Vec<u8> = reports.iter().flat_map(|r| r.to_be_bytes()).collect();
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let (mut reader, mut seen) = (ReportReader::default(), Vec::new());
                for part in [&whole[..first], &whole[first..second], &whole[second..]] {
                    reader.feed(part, |report| seen.push(report));
                }
                assert_eq!(seen, reports, "torn at {first} and {second}");
            }
        }
    }

    #[test]
    fn what_cannot_be_a_chunk_is_refused() {
        for (position, size) in [(-1i64, 5i32), (0, -1), (0, MAX_CHUNK as i32 + 1)] {
            let mut header = position.to_be_bytes().to_vec();
            header.extend_from_slice(&size.to_be_bytes());
            let refused = ChunkReader::default().next(&mut &header[..]);
            assert_eq!(refused, Err(Malformed { position, size }));
        }
    }

    #[test]
    fn the_first_report_says_where_to_begin() {
        for start in [
            Start::LastFile,
            Start::At(1),
            Start::At(1 << 40),
            Start::Exactly(0),
            Start::Exactly(1 << 40),
        ] {
            assert_eq!(
                Start::from_report(i64::from_be_bytes(start.report())),
                start
            );
        }
    }
}
