//! Stores that we do not serve are refused with a sentence, never half served.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::config::StoreConfig;
use crate::error::Error;
use crate::segment::numbered_files;

pub(crate) fn refuse_foreign(root: &Path) -> Result<(), Error> {
    let rocksdb = [
        "consumequeue_r",
        "consumequeue/CURRENT",
        "config/topics/CURRENT",
        "config/subscriptionGroups/CURRENT",
        "config/consumerOffsets/CURRENT",
        "config/metadata/CURRENT",
    ];
    if let Some(found) = rocksdb.iter().find(|name| root.join(name).exists()) {
        return Err(Error::Unsupported(format!(
            "{} belongs to a RocksDB store (storeType=defaultRocksDB), which this broker does not read: \
             let its own broker serve it until consumers have drained it, and send new messages elsewhere",
            root.join(found).display()
        )));
    }
    if has_entries(&root.join("batchconsumequeue"))? {
        return Err(Error::Unsupported(format!(
            "{} holds batch consume queues (queue.type=BatchCQ), which this broker does not read",
            root.display()
        )));
    }
    for entry in fs::read_dir(root).map_err(|e| Error::io("list", root, e))? {
        let entry = entry.map_err(|e| Error::io("list", root, e))?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|n| n.starts_with("dledger-"))
            && has_entries(&entry.path().join("data"))?
        {
            return Err(Error::Unsupported(format!(
                "{} is the log of a DLedger group of the Java broker, which this broker does not read: \
                 set up a second cluster and let the consumers drain this one",
                entry.path().display()
            )));
        }
    }
    refuse_pending_timers(root)
}

/// Whose log this is cannot be changed in place: what the other mode left would silently be without effect.
pub(crate) fn refuse_other_mode(config: &StoreConfig) -> Result<(), Error> {
    let io = |path: &Path, e| Error::io("list", path, e);
    if config.frames.is_some() {
        let plain = config.root.join("commitlog");
        if !numbered_files(&plain)
            .map_err(|e| io(&plain, e))?
            .is_empty()
        {
            return Err(Error::Unsupported(format!(
                "{} holds the log of a broker without enableDLegerCommitLog, which a dledger group does not take over: \
                 give it a folder of its own and let the consumers drain the old broker",
                plain.display()
            )));
        }
        return Ok(());
    }
    for entry in fs::read_dir(&config.root).map_err(|e| io(&config.root, e))? {
        let entry = entry.map_err(|e| io(&config.root, e))?;
        let path = entry.path();
        let named = entry
            .file_name()
            .to_str()
            .is_some_and(|n| n.starts_with("dledger-"));
        if named && path.is_dir() && !numbered_files(&path).map_err(|e| io(&path, e))?.is_empty() {
            return Err(Error::Unsupported(format!(
                "{} holds the log of a member of a dledger group (enableDLegerCommitLog), which a broker without it \
                 does not take over: let the consumers drain the group",
                path.display()
            )));
        }
    }
    Ok(())
}

fn has_entries(dir: &Path) -> Result<bool, Error> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(Error::io("list", dir, e)),
    }
}

/// `timerwheel`: slots of time 8, first position 8, last position 8, count 4, magic 4. A slot is spent when its time
/// lies before what `config/timercheck` has at byte 0, the time up to which the wheel was read.
fn refuse_pending_timers(root: &Path) -> Result<(), Error> {
    const SLOT: usize = 32;
    let path = root.join("timerwheel");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let mut read_to = [0; 8];
    let read_to = match File::open(root.join("config/timercheck"))
        .and_then(|f| f.read_exact_at(&mut read_to, 0))
    {
        Ok(()) => i64::from_be_bytes(read_to),
        Err(_) => 0,
    };
    // The file is sparse: only what was ever written is looked at.
    let length = file
        .metadata()
        .map_err(|e| Error::io("look at", &path, e))?
        .len();
    let mut at = 0;
    let mut pending = 0u64;
    let mut buffer = vec![0; SLOT * 2048];
    while at < length {
        match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = data - data % SLOT as u64,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        let n = crate::disk::read_full_at(&file, &mut buffer, at)
            .map_err(|e| Error::io("read", &path, e))?;
        if n == 0 {
            break;
        }
        pending += buffer[..n]
            .chunks_exact(SLOT)
            .filter(|slot| {
                let time = crate::record::i64_at(slot, 0).unwrap_or(0);
                time > 0
                    && time >= read_to
                    && crate::record::i32_at(slot, 24).is_some_and(|count| count > 0)
            })
            .count() as u64;
        at += n as u64;
    }
    let _ = io::Seek::rewind(&mut file);
    if pending > 0 {
        return Err(Error::Unsupported(format!(
            "{} holds {pending} moments with pending timer messages (timerWheelEnable), which this broker does not deliver: \
             let the Java broker deliver them first",
            path.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_other_kinds_are_refused_and_an_idle_timer_wheel_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refuse_foreign(dir.path()).is_ok());
        let wheel = File::create(dir.path().join("timerwheel")).unwrap();
        wheel.set_len(604_800 * 2 * 32).unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("config/timercheck"), 5_000i64.to_be_bytes()).unwrap();
        let mut slot = [0; 32];
        slot[..8].copy_from_slice(&4_000i64.to_be_bytes());
        slot[24..28].copy_from_slice(&1i32.to_be_bytes());
        wheel.write_all_at(&slot, 32 * 500_000).unwrap();
        assert!(refuse_foreign(dir.path()).is_ok());
        slot[..8].copy_from_slice(&6_000i64.to_be_bytes());
        wheel.write_all_at(&slot, 32 * 600_000).unwrap();
        assert!(
            refuse_foreign(dir.path())
                .unwrap_err()
                .to_string()
                .contains("1 moments with pending timer")
        );
    }

    /// The files that a 5.3.3 broker leaves with `storeType=defaultRocksDB`, each alone, and other kinds.
    #[test]
    fn what_cannot_be_read_is_named() {
        for (file, sentence) in [
            ("consumequeue/CURRENT", "belongs to a RocksDB store"),
            ("consumequeue_r/CURRENT", "belongs to a RocksDB store"),
            ("config/topics/CURRENT", "belongs to a RocksDB store"),
            (
                "config/subscriptionGroups/CURRENT",
                "belongs to a RocksDB store",
            ),
            (
                "config/consumerOffsets/CURRENT",
                "belongs to a RocksDB store",
            ),
            (
                "batchconsumequeue/T/0/00000000000000000000",
                "holds batch consume queues",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"MANIFEST-000005").unwrap();
            let Err(Error::Unsupported(text)) = refuse_foreign(dir.path()) else {
                panic!("{file} is not refused");
            };
            assert!(text.contains(sentence), "{text}");
        }
    }
}
