//! The key-value tables (codes 100–102, 219), kept in memory and in one JSON file that is replaced as a whole at every change.
//! In practice they hold order topics: namespace [`ORDER_TOPIC_CONFIG`].

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Namespace of `orderTopicConf`: topic → `broker:queues;broker:queues`.
pub const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";

pub type Table = BTreeMap<String, String>;

/// The file as upstream writes it.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Contents {
    #[serde(default)]
    config_table: BTreeMap<String, Table>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a KV file: {source}")]
    Malformed {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot write {path}: {source}")]
    Unwritable {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Not shared by itself: its owner puts it behind a lock. `put` and `delete` write the file before they return.
pub struct KvConfigManager {
    path: PathBuf,
    tables: BTreeMap<String, Table>,
}

impl KvConfigManager {
    /// An absent file is an empty table; a damaged one is an error, never an empty table.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let tables = match std::fs::read(path) {
            Ok(bytes) if bytes.is_empty() => BTreeMap::new(),
            Ok(bytes) => {
                serde_json::from_slice::<Contents>(&bytes)
                    .map_err(|source| Error::Malformed {
                        path: path.to_owned(),
                        source,
                    })?
                    .config_table
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => {
                return Err(Error::Unreadable {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            tables,
        })
    }

    pub fn get(&self, namespace: &str, key: &str) -> Option<&str> {
        self.tables.get(namespace)?.get(key).map(String::as_str)
    }

    pub fn list(&self, namespace: &str) -> Option<&Table> {
        self.tables.get(namespace)
    }

    pub fn put(&mut self, namespace: &str, key: &str, value: &str) -> Result<(), Error> {
        let mut next = self.tables.clone();
        next.entry(namespace.to_owned())
            .or_default()
            .insert(key.to_owned(), value.to_owned());
        self.replace(next)
    }

    pub fn delete(&mut self, namespace: &str, key: &str) -> Result<(), Error> {
        if self.get(namespace, key).is_none() {
            return Ok(());
        }
        let mut next = self.tables.clone();
        if let Some(table) = next.get_mut(namespace) {
            table.remove(key);
        }
        self.replace(next)
    }

    /// The file first: what could not be stored is not served either.
    fn replace(&mut self, next: BTreeMap<String, Table>) -> Result<(), Error> {
        let contents = Contents { config_table: next };
        self.write(&contents).map_err(|source| Error::Unwritable {
            path: self.path.clone(),
            source,
        })?;
        self.tables = contents.config_table;
        Ok(())
    }

    fn write(&self, contents: &Contents) -> std::io::Result<()> {
        write_atomically(&self.path, &serde_json::to_vec_pretty(contents)?)
    }
}

/// A reader sees the old file or the new one, also after a crash.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = folder.join(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/kvConfig.json");
        let mut kv = KvConfigManager::load(&path).unwrap();
        assert_eq!(kv.get("ns", "k"), None);
        kv.put("ns", "k", "v").unwrap();
        kv.put("ns", "gone", "v").unwrap();
        kv.delete("ns", "gone").unwrap();
        kv.delete("other", "never there").unwrap();
        let kv = KvConfigManager::load(&path).unwrap();
        assert_eq!(kv.list("ns").map(|t| t.len()), Some(1));
        assert_eq!(kv.get("ns", "k"), Some("v"));
        assert_eq!(kv.list("other"), None);
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"configTable": {"ns": {"k": "v"}}}));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kvConfig.json");
        std::fs::write(&path, "{\"configTable\":").unwrap();
        assert!(matches!(
            KvConfigManager::load(&path),
            Err(Error::Malformed { .. })
        ));
    }

    #[test]
    fn a_change_that_cannot_be_stored_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, "x").unwrap();
        let mut kv = KvConfigManager {
            path: blocked.join("kvConfig.json"),
            tables: BTreeMap::new(),
        };
        assert!(matches!(
            kv.put("ns", "k", "v"),
            Err(Error::Unwritable { .. })
        ));
        assert_eq!(kv.get("ns", "k"), None);
    }
}
