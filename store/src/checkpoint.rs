//! What is known to be on disk: upstream's `checkpoint`, and our finer `offsets` beside it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::disk::read_full_at;
use crate::error::Error;

const CHECKPOINT_LEN: u64 = 4096;
const CHECKPOINT_FIELDS: usize = 40;

/// Store timestamps of the newest records that are durable in log, queues and index; big-endian longs from byte 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) physic_msg_timestamp: i64,
    pub(crate) logics_msg_timestamp: i64,
    pub(crate) index_msg_timestamp: i64,
    pub(crate) master_flushed_offset: i64,
    pub(crate) confirm_phy_offset: i64,
}

/// Upstream steps back this far before the older of the two timestamps (`StoreCheckpoint.getMinTimestamp`).
const SAFETY_MS: i64 = 3_000;

impl Checkpoint {
    pub(crate) fn encode(&self) -> [u8; CHECKPOINT_FIELDS] {
        let mut bytes = [0; CHECKPOINT_FIELDS];
        let fields = [
            self.physic_msg_timestamp,
            self.logics_msg_timestamp,
            self.index_msg_timestamp,
            self.master_flushed_offset,
            self.confirm_phy_offset,
        ];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; CHECKPOINT_FIELDS]) -> Self {
        let long = |i: usize| crate::record::i64_at(bytes, i * 8).unwrap_or(0);
        Self {
            physic_msg_timestamp: long(0),
            logics_msg_timestamp: long(1),
            index_msg_timestamp: long(2),
            master_flushed_offset: long(3),
            confirm_phy_offset: long(4),
        }
    }

    pub(crate) fn safe_timestamp(&self) -> i64 {
        (self.physic_msg_timestamp.min(self.logics_msg_timestamp) - SAFETY_MS).max(0)
    }
}

/// Where recovery may begin. Valid only beside the very checkpoint it embeds: otherwise another broker ran since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) boot_id: [u8; 16],
    /// Queues and index hold everything below this, in the page cache at least.
    pub(crate) dispatched: u64,
    /// The same, on disk. synced <= dispatched.
    pub(crate) synced: u64,
    /// Begin of the last record below `dispatched`, or u64::MAX: must still be there.
    pub(crate) last_phy: u64,
    pub(crate) queues: u64,
    /// Begin of the last record that the index holds, or u64::MAX if it holds none.
    pub(crate) index_last_phy: u64,
}

const OFFSETS_MAGIC: &[u8; 8] = b"RCoffs01";
const OFFSETS_LEN: usize = 8 + CHECKPOINT_FIELDS + 16 + 5 * 8 + 4;

impl Offsets {
    fn encode(&self) -> [u8; OFFSETS_LEN] {
        let mut out = [0; OFFSETS_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(OFFSETS_MAGIC);
        put(&self.checkpoint.encode());
        put(&self.boot_id);
        for field in [
            self.dispatched,
            self.synced,
            self.last_phy,
            self.queues,
            self.index_last_phy,
        ] {
            put(&field.to_be_bytes());
        }
        let crc = crc32fast::hash(&out[..OFFSETS_LEN - 4]);
        out[OFFSETS_LEN - 4..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// None for anything but a whole, untorn file of this version.
    fn decode(bytes: &[u8; OFFSETS_LEN]) -> Option<Self> {
        let (content, crc) = bytes.split_at(OFFSETS_LEN - 4);
        if !content.starts_with(OFFSETS_MAGIC) || crc32fast::hash(content).to_be_bytes() != crc {
            return None;
        }
        let at = 8 + CHECKPOINT_FIELDS + 16;
        let field = |i: usize| Some(crate::record::i64_at(content, at + i * 8)? as u64);
        Some(Self {
            checkpoint: Checkpoint::decode(content[8..8 + CHECKPOINT_FIELDS].try_into().ok()?),
            boot_id: content[8 + CHECKPOINT_FIELDS..at].try_into().ok()?,
            dispatched: field(0)?,
            synced: field(1)?,
            last_phy: field(2)?,
            queues: field(3)?,
            index_last_phy: field(4)?,
        })
    }
}

/// Identifies the run of the kernel: what a process wrote before `kill -9` is still there if it is the same.
pub fn boot_id() -> [u8; 16] {
    let mut id = [0; 16];
    if let Ok(text) = fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        let digits: Vec<u8> = text
            .bytes()
            .filter_map(|b| char::from(b).to_digit(16).map(|d| d as u8))
            .collect();
        for (to, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *to = pair[0] << 4 | pair[1];
        }
    }
    id
}

/// Whether this is still the run of the kernel that was noted; no where the system does not tell, since then a power loss cannot be ruled out.
pub fn is_same_boot(noted: &[u8; 16]) -> bool {
    is_known_and_equal(noted, &boot_id())
}

fn is_known_and_equal(noted: &[u8; 16], here: &[u8; 16]) -> bool {
    *here != [0; 16] && noted == here
}

pub(crate) struct CheckpointFiles {
    checkpoint: File,
    offsets: File,
}

impl CheckpointFiles {
    /// Creates what is missing. The second value is None unless it belongs to the first.
    pub(crate) fn open(root: &Path) -> Result<(Self, Checkpoint, Option<Offsets>), Error> {
        let open = |name: &str| {
            let path = root.join(name);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|e| Error::io("open", path, e))
        };
        let files = Self {
            checkpoint: open("checkpoint")?,
            offsets: open("offsets")?,
        };
        let path = root.join("checkpoint");
        let mut bytes = [0; CHECKPOINT_FIELDS];
        read_full_at(&files.checkpoint, &mut bytes, 0).map_err(|e| Error::io("read", &path, e))?;
        let length = files
            .checkpoint
            .metadata()
            .map_err(|e| Error::io("look at", &path, e))?
            .len();
        if length < CHECKPOINT_LEN {
            files
                .checkpoint
                .set_len(CHECKPOINT_LEN)
                .map_err(|e| Error::io("extend", &path, e))?;
        }
        let checkpoint = Checkpoint::decode(&bytes);
        let mut bytes = [0; OFFSETS_LEN];
        read_full_at(&files.offsets, &mut bytes, 0)
            .map_err(|e| Error::io("read", root.join("offsets"), e))?;
        let offsets = Offsets::decode(&bytes).filter(|o| o.checkpoint == checkpoint);
        Ok((files, checkpoint, offsets))
    }

    pub(crate) fn write(&self, offsets: &Offsets) -> io::Result<()> {
        self.checkpoint
            .write_all_at(&offsets.checkpoint.encode(), 0)?;
        self.offsets.write_all_at(&offsets.encode(), 0)
    }

    /// Our own offsets no longer hold.
    pub(crate) fn forget(&self) -> io::Result<()> {
        self.offsets.write_all_at(&[0; OFFSETS_LEN], 0)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.checkpoint.sync_data()?;
        self.offsets.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_boot_is_never_the_same() {
        assert!(is_known_and_equal(&[7; 16], &[7; 16]));
        assert!(!is_known_and_equal(&[7; 16], &[8; 16]));
        assert!(!is_known_and_equal(&[0; 16], &[0; 16]));
    }

    #[test]
    fn offsets_hold_only_beside_their_own_checkpoint_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (files, checkpoint, none) = CheckpointFiles::open(dir.path()).unwrap();
        assert_eq!((checkpoint, none), (Checkpoint::default(), None));
        let checkpoint = Checkpoint {
            physic_msg_timestamp: 9_000,
            logics_msg_timestamp: 8_000,
            ..Default::default()
        };
        let offsets = Offsets {
            checkpoint,
            boot_id: boot_id(),
            dispatched: 7,
            synced: 5,
            last_phy: 3,
            queues: 2,
            index_last_phy: 3,
        };
        files.write(&offsets).unwrap();
        let (files, read, own) = CheckpointFiles::open(dir.path()).unwrap();
        assert_eq!((read.safe_timestamp(), own), (5_000, Some(offsets)));
        assert_eq!(
            fs::metadata(dir.path().join("checkpoint")).unwrap().len(),
            CHECKPOINT_LEN
        );
        files.offsets.write_all_at(&[0xff], 60).unwrap();
        assert_eq!(CheckpointFiles::open(dir.path()).unwrap().2, None);
        files
            .write(&Offsets {
                checkpoint,
                ..Default::default()
            })
            .unwrap();
        files.checkpoint.write_all_at(&[1], 30).unwrap();
        assert_eq!(CheckpointFiles::open(dir.path()).unwrap().2, None);
    }
}
