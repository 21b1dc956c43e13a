//! The part of the configuration that may change while the store is open: retention and the limits of one read.

use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed,
};

use crate::config::StoreConfig;
use crate::store::Store;

/// Plain atomics: readers on the hot path only load, and no two of these values depend on each other.
#[derive(Debug, Default)]
pub(crate) struct Live {
    file_reserved_hours: AtomicU64,
    /// A bit for each hour of the day.
    delete_when: AtomicU32,
    disk_max_used_space_ratio: AtomicU8,
    disk_space_clean_forcibly_ratio: AtomicU8,
    disk_space_warning_level_ratio: AtomicU8,
    clean_file_forcibly_enable: AtomicBool,
    max_transfer_bytes_in_memory: AtomicUsize,
    max_transfer_count_in_memory: AtomicU32,
    max_transfer_bytes_on_disk: AtomicUsize,
    max_transfer_count_on_disk: AtomicU32,
    access_message_in_memory_max_ratio: AtomicU8,
}

impl Live {
    pub(crate) fn new(config: &StoreConfig) -> Self {
        let live = Self::default();
        live.take(config);
        live
    }

    fn take(&self, config: &StoreConfig) {
        let hours = config.delete_when.iter().filter(|hour| **hour < 24);
        let hours = hours.fold(0, |bits, hour| bits | 1 << hour);
        self.file_reserved_hours
            .store(config.file_reserved_hours, Relaxed);
        self.delete_when.store(hours, Relaxed);
        self.disk_max_used_space_ratio
            .store(config.disk_max_used_space_ratio, Relaxed);
        self.disk_space_clean_forcibly_ratio
            .store(config.disk_space_clean_forcibly_ratio, Relaxed);
        self.disk_space_warning_level_ratio
            .store(config.disk_space_warning_level_ratio, Relaxed);
        self.clean_file_forcibly_enable
            .store(config.clean_file_forcibly_enable, Relaxed);
        self.max_transfer_bytes_in_memory
            .store(config.max_transfer_bytes_in_memory, Relaxed);
        self.max_transfer_count_in_memory
            .store(config.max_transfer_count_in_memory, Relaxed);
        self.max_transfer_bytes_on_disk
            .store(config.max_transfer_bytes_on_disk, Relaxed);
        self.max_transfer_count_on_disk
            .store(config.max_transfer_count_on_disk, Relaxed);
        self.access_message_in_memory_max_ratio
            .store(config.access_message_in_memory_max_ratio, Relaxed);
    }

    pub(crate) fn reserved_ms(&self) -> i64 {
        let hours = self.file_reserved_hours.load(Relaxed);
        i64::try_from(hours.saturating_mul(3_600_000)).unwrap_or(i64::MAX)
    }

    pub(crate) fn deletes_at(&self, hour: u8) -> bool {
        hour < 24 && self.delete_when.load(Relaxed) & (1 << hour) != 0
    }

    /// Per cent of the disk above which expired files are deleted at any hour.
    pub(crate) fn full_above(&self) -> f64 {
        self.disk_max_used_space_ratio
            .load(Relaxed)
            .clamp(10, 95)
            .into()
    }

    /// The same for files that are not expired; `None` when that is not allowed.
    pub(crate) fn forced_above(&self) -> Option<f64> {
        let percent = self
            .disk_space_clean_forcibly_ratio
            .load(Relaxed)
            .clamp(30, 95);
        self.clean_file_forcibly_enable
            .load(Relaxed)
            .then_some(percent.into())
    }

    /// The same for refusing writes.
    pub(crate) fn refused_above(&self) -> f64 {
        self.disk_space_warning_level_ratio
            .load(Relaxed)
            .clamp(35, 100)
            .into()
    }

    /// Bytes and records of one read from memory.
    pub(crate) fn transfer_in_memory(&self) -> (usize, u32) {
        (
            self.max_transfer_bytes_in_memory.load(Relaxed),
            self.max_transfer_count_in_memory.load(Relaxed),
        )
    }

    /// Bytes and records of one read from disk.
    pub(crate) fn transfer_on_disk(&self) -> (usize, u32) {
        (
            self.max_transfer_bytes_on_disk.load(Relaxed),
            self.max_transfer_count_on_disk.load(Relaxed),
        )
    }

    /// Per cent of the machine's memory at the end of the log that count as being in memory.
    pub(crate) fn in_memory_ratio(&self) -> f64 {
        self.access_message_in_memory_max_ratio.load(Relaxed).into()
    }
}

impl Store {
    /// Takes over what may change while the store is open: retention and the limits of one read. The rest of `config`
    /// is not looked at.
    pub fn reconfigure(&self, config: &StoreConfig) {
        self.live.take(config);
    }
}
