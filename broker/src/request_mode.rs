//! Who consumes a topic by pulls and who by pops, `config/messageRequestMode.json` (5.x).
//!
//! Pop consumption is not served yet, so nobody here acts on the table: it is kept as it was found or copied from a master, and
//! given on (402), so that a group that moves here and back again loses no setting.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use remoting::protocol::body::MessageRequestModeSerializeWrapper;

use crate::config_file::{self, Saver};

#[derive(Debug)]
pub struct MessageRequestModeManager {
    path: PathBuf,
    saver: Arc<Saver>,
    table: Mutex<MessageRequestModeSerializeWrapper>,
}

impl MessageRequestModeManager {
    pub fn load(path: PathBuf, saver: Arc<Saver>) -> Result<Self, config_file::Error> {
        let table = config_file::read(&path)?.unwrap_or_default();
        Ok(Self {
            path,
            saver,
            table: Mutex::new(table),
        })
    }

    /// The answer of 402.
    pub fn wrapper(&self) -> MessageRequestModeSerializeWrapper {
        self.table.lock().clone()
    }

    /// Puts what a master sent in place of the table.
    pub fn follow(&self, master: MessageRequestModeSerializeWrapper) {
        let mut table = self.table.lock();
        if *table != master {
            *table = master;
            match serde_json::to_string_pretty(&*table) {
                Ok(text) => self.saver.save(self.path.clone(), text),
                Err(error) => tracing::error!(%error, "cannot encode the request modes"),
            }
        }
    }
}
