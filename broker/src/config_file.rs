//! The JSON files under `<root>/config`, in the shapes a Java broker writes and reads.
//!
//! A file is replaced as a whole ([`store::replace_file`]) while its former content stays reachable as `<name>.bak`: a crash at any point leaves at least one whole version. Reading tries the file, then
//! its `.bak`. All writes go through one [`Saver`] thread, so that no request ever waits for a disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use remoting::protocol::json;
use serde::de::DeserializeOwned;

/// A write that failed is tried again after this long, or at the next request for the same file.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged and so is its .bak: {reason}")]
    Damaged { path: PathBuf, reason: String },
}

/// The content of `path`, or of its `.bak` when the file is missing, empty or damaged; `None` when neither exists.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let main = read_one(path)?;
    let reason = match main {
        Some(Ok(value)) => return Ok(Some(value)),
        Some(Err(reason)) => Some(reason),
        None => None,
    };
    let backup = backup_path(path);
    match (read_one(&backup)?, reason) {
        (Some(Ok(value)), reason) => {
            tracing::warn!(file = %path.display(), reason = reason.unwrap_or_else(|| "missing or empty".to_owned()), "read the .bak instead");
            Ok(Some(value))
        }
        (None | Some(Err(_)), Some(reason)) | (Some(Err(reason)), None) => Err(Error::Damaged {
            path: path.to_owned(),
            reason,
        }),
        (None, None) => Ok(None),
    }
}

fn read_one<T: DeserializeOwned>(path: &Path) -> Result<Option<Result<T, String>>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    Ok(Some(
        json::from_slice(&text).map_err(|error| error.to_string()),
    ))
}

/// Replaces `path` with `text`, durably; the previous content is kept as `.bak`.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let backup = backup_path(path);
    if path.exists() {
        // The old file keeps its name until it is replaced, so one of the two names always holds a whole version.
        match fs::remove_file(&backup) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if fs::hard_link(path, &backup).is_err() {
            fs::copy(path, &backup)?;
        }
    }
    store::replace_file(path, text.as_bytes())
}

fn backup_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".bak");
    PathBuf::from(name)
}

/// One thread that writes config files. Only the newest text of each file is kept while it waits.
#[derive(Debug)]
pub struct Saver {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<PathBuf, String>,
    writing: bool,
    failed: bool,
    stopped: bool,
}

impl Saver {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new()
            .name("config-saver".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Asks for `path` to be replaced by `text`. Call it under the lock that guards the encoded table: the last call wins.
    pub fn save(&self, path: PathBuf, text: String) {
        let mut state = self.shared.state.lock();
        state.pending.insert(path, text);
        state.failed = false;
        self.shared.changed.notify_all();
    }

    /// Whether everything asked for is on disk.
    pub fn is_idle(&self) -> bool {
        let state = self.shared.state.lock();
        !state.writing && state.pending.is_empty()
    }

    /// Waits until everything asked for is on disk; false when a write failed.
    pub fn flush(&self) -> bool {
        let mut state = self.shared.state.lock();
        while (state.writing || !state.pending.is_empty()) && !state.failed && !state.stopped {
            self.shared.changed.wait(&mut state);
        }
        state.pending.is_empty()
    }

    /// Writes what is pending and ends the thread.
    pub fn stop(&self) {
        self.flush();
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the config saver panicked");
        }
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return;
            }
            if state.failed {
                if self.changed.wait_for(&mut state, RETRY_AFTER).timed_out() {
                    state.failed = false;
                }
                continue;
            }
            let Some((path, text)) = state.pending.pop_first() else {
                self.changed.wait(&mut state);
                continue;
            };
            state.writing = true;
            let result = MutexGuard::unlocked(&mut state, || write(&path, &text));
            state.writing = false;
            if let Err(error) = result {
                tracing::error!(file = %path.display(), %error, "cannot save; will try again");
                state.pending.entry(path).or_insert(text);
                state.failed = true;
            }
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = BTreeMap<String, BTreeMap<String, i64>>;

    #[test]
    fn the_previous_version_stays_as_bak_and_is_read_when_the_file_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config/x.json");
        assert!(read::<Table>(&path).unwrap().is_none());
        write(&path, r#"{"offsetTable":{"a":1}}"#).unwrap();
        write(&path, r#"{"offsetTable":{"a":2}}"#).unwrap();
        assert_eq!(
            read::<Table>(&path).unwrap().unwrap()["offsetTable"]["a"],
            2
        );
        fs::write(&path, r#"{"offsetTable":{"a":"#).unwrap();
        assert_eq!(
            read::<Table>(&path).unwrap().unwrap()["offsetTable"]["a"],
            1
        );
        fs::write(&path, "").unwrap();
        assert_eq!(
            read::<Table>(&path).unwrap().unwrap()["offsetTable"]["a"],
            1
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(
            read::<Table>(&path).unwrap().unwrap()["offsetTable"]["a"],
            1
        );
    }

    #[test]
    fn a_file_and_bak_both_damaged_are_an_error_not_an_empty_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(read::<Table>(&path), Err(Error::Damaged { .. })));
        fs::write(folder.path().join("x.json.bak"), "{").unwrap();
        assert!(matches!(read::<Table>(&path), Err(Error::Damaged { .. })));
    }

    #[test]
    fn unquoted_integer_keys_of_fastjson_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        fs::write(&path, "{\n\t\"offsetTable\":{0:5,1:7\n\t}\n}").unwrap();
        assert_eq!(
            read::<Table>(&path).unwrap().unwrap()["offsetTable"]["1"],
            7
        );
    }

    #[test]
    fn the_saver_writes_the_newest_text_and_reports_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let saver = Saver::start().unwrap();
        let path = folder.path().join("a.json");
        for n in 0..100 {
            saver.save(path.clone(), format!("{{\"n\":{{\"n\":{n}}}}}"));
        }
        assert!(saver.flush());
        assert_eq!(read::<Table>(&path).unwrap().unwrap()["n"]["n"], 99);
        let blocked = folder.path().join("file");
        fs::write(&blocked, "x").unwrap();
        saver.save(blocked.join("b.json"), "{}".to_owned());
        assert!(!saver.flush());
        saver.stop();
    }
}
