//! What a segment costs by where its blocks come from: `cargo run --release -p store --example recycle -- [folder] [MiB] [appends]`.
//!
//! For each kind: the time to make the file ready, and how long an append of 1 KiB with its `fdatasync` takes. Kinds are measured in turns, three times. The figures
//! behind `docs/adr/0001-segments-are-not-recycled.md`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const APPEND: usize = 1024;
const PIECE: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A hole of its full length.
    Sparse,
    /// Blocks reserved, not written.
    Reserved,
    /// A new file, zeroed ahead, as under SYNC_FLUSH.
    Zeroed,
    /// An old file full of records, zeroed, synced and renamed.
    Recycled,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn fill(file: &File, len: u64, byte: u8) -> io::Result<()> {
    let piece = vec![byte; PIECE];
    for at in (0..len).step_by(PIECE) {
        file.write_all_at(&piece, at)?;
    }
    file.sync_all()
}

/// The file and how long it took to make it ready.
fn prepare(kind: Kind, dir: &Path, len: u64) -> io::Result<(PathBuf, Duration)> {
    let (old, new) = (dir.join("old"), dir.join("new"));
    if matches!(kind, Kind::Recycled) {
        fill(&open(&old)?, len, 0xA5)?;
    }
    let begin = Instant::now();
    match kind {
        Kind::Recycled => {
            fill(&open(&old)?, len, 0)?;
            fs::rename(&old, &new)?;
        }
        _ => {
            let file = open(&new)?;
            file.set_len(len)?;
            match kind {
                Kind::Reserved => {
                    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, len)?;
                }
                Kind::Zeroed => fill(&file, len, 0)?,
                Kind::Sparse | Kind::Recycled => {}
            }
        }
    }
    File::open(dir)?.sync_all()?;
    Ok((new, begin.elapsed()))
}

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap_or_else(|| ".".to_owned())).join("recycle-example");
    let mut number = |default: u64| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (len, appends) = (number(64) << 20, number(1_000));
    fs::create_dir_all(&dir)?;
    println!(
        "{:10} {:>12} {:>12} {:>12}",
        "kind", "ready ms", "median us", "p99 us"
    );
    for _ in 0..ROUNDS {
        for kind in [Kind::Sparse, Kind::Reserved, Kind::Zeroed, Kind::Recycled] {
            let (path, ready) = prepare(kind, &dir, len)?;
            let file = open(&path)?;
            let mut times = Vec::new();
            for n in 0..appends {
                let begin = Instant::now();
                file.write_all_at(&[1; APPEND], n * APPEND as u64)?;
                file.sync_data()?;
                times.push(begin.elapsed());
            }
            times.sort_unstable();
            let at = |share: usize| times[(times.len() - 1) * share / 100].as_micros();
            println!(
                "{:10} {:>12.1} {:>12} {:>12}",
                format!("{kind:?}"),
                ready.as_secs_f64() * 1e3,
                at(50),
                at(99)
            );
            fs::remove_file(&path)?;
        }
    }
    fs::remove_dir_all(&dir)
}
