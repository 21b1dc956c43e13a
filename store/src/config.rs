//! What the store needs to know. Field names follow upstream's keys; the broker maps them.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushDiskType {
    SyncFlush,
    AsyncFlush,
}

/// A log of frames: the Raft log of a group (dledger).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameConfig {
    /// A position up to which the group is known to have committed; queues show no more until `advance_confirm`.
    pub committed: u64,
}

/// Default lengths are upstream's; a store with files keeps the sizes of its files.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `storePathRootDir`.
    pub root: PathBuf,
    /// `storePathCommitLog`. Default: `<root>/commitlog`.
    pub commit_log_path: Option<PathBuf>,
    /// Every append is one frame of a Raft log, and only what is committed is shown. Default: none.
    pub frames: Option<FrameConfig>,
    /// `mappedFileSizeCommitLog`. Default: 1 GiB.
    pub segment_size: u64,
    /// `mappedFileSizeConsumeQueue` in bytes, rounded up to a multiple of 20. Default: 6,000,000.
    pub consume_queue_file_size: u64,
    pub flush: FlushDiskType,
    /// `flushIntervalCommitLog`. Default: 500 ms.
    pub flush_interval: Duration,
    /// `flushCommitLogLeastPages` (4 KiB each). Default: 4.
    pub flush_least_pages: u32,
    /// `flushCommitLogThoroughInterval`. Default: 10 s.
    pub flush_thorough_interval: Duration,
    /// Under ASYNC_FLUSH write-back starts early when this much waits. Default: 16 MiB.
    pub write_back_bytes: u64,
    /// Appends are answered Busy when written minus flushed exceeds this. Default: 256 MiB.
    pub max_unflushed_bytes: u64,
    /// In-memory tail of the log. Default: 32 MiB, touched lazily.
    pub tail_ring_bytes: usize,
    /// `maxMessageSize`: bound of a body; a record may be 64 KiB longer. Default: 4 MiB.
    pub max_message_size: usize,
    /// `maxHashSlotNum`. Default: 5,000,000.
    pub max_hash_slot_num: u32,
    /// `maxIndexNum`. Default: 20,000,000.
    pub max_index_num: u32,
    /// `messageIndexEnable`. Default: true.
    pub message_index_enable: bool,
    /// `fileReservedTime` in hours. Default: 72.
    pub file_reserved_hours: u64,
    /// `deleteWhen`: hours of the day. Default: 4.
    pub delete_when: Vec<u8>,
    /// `diskMaxUsedSpaceRatio` in per cent. Default: 75.
    pub disk_max_used_space_ratio: u8,
    /// `diskSpaceCleanForciblyRatio` in per cent. Default: 85.
    pub disk_space_clean_forcibly_ratio: u8,
    /// `diskSpaceWarningLevelRatio` in per cent. Default: 90.
    pub disk_space_warning_level_ratio: u8,
    /// `cleanFileForciblyEnable`. Default: true.
    pub clean_file_forcibly_enable: bool,
    /// `deleteFileBatchMax`. Default: 10.
    pub delete_file_batch_max: usize,
    /// `deleteCommitLogFilesInterval`: pause between two deletions. Default: 100 ms.
    pub delete_commit_log_files_interval: Duration,
    /// `cleanResourceInterval`. Default: 10 s.
    pub clean_resource_interval: Duration,
    /// `maxTransferBytesOnMessageInMemory`. Default: 256 KiB.
    pub max_transfer_bytes_in_memory: usize,
    /// `maxTransferCountOnMessageInMemory`. Default: 32.
    pub max_transfer_count_in_memory: u32,
    /// `maxTransferBytesOnMessageInDisk`. Default: 64 KiB.
    pub max_transfer_bytes_on_disk: usize,
    /// `maxTransferCountOnMessageInDisk`. Default: 8.
    pub max_transfer_count_on_disk: u32,
    /// `accessMessageInMemoryMaxRatio` in per cent of RAM. Default: 40.
    pub access_message_in_memory_max_ratio: u8,
    /// `offsetCheckInSlave` with role SLAVE: false means that reads are not corrected. Default: true.
    pub correct_offsets: bool,
    /// `messageDelayLevel` in milliseconds, level 1 first: recovery recomputes due times from it.
    pub delay_levels_ms: Vec<i64>,
}

impl StoreConfig {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        const S: i64 = 1_000;
        const M: i64 = 60 * S;
        const H: i64 = 60 * M;
        Self {
            root: root.into(),
            commit_log_path: None,
            frames: None,
            segment_size: 1 << 30,
            consume_queue_file_size: 6_000_000,
            flush: FlushDiskType::AsyncFlush,
            flush_interval: Duration::from_millis(500),
            flush_least_pages: 4,
            flush_thorough_interval: Duration::from_secs(10),
            write_back_bytes: 16 << 20,
            max_unflushed_bytes: 256 << 20,
            tail_ring_bytes: 32 << 20,
            max_message_size: 4 << 20,
            max_hash_slot_num: 5_000_000,
            max_index_num: 20_000_000,
            message_index_enable: true,
            file_reserved_hours: 72,
            delete_when: vec![4],
            disk_max_used_space_ratio: 75,
            disk_space_clean_forcibly_ratio: 85,
            disk_space_warning_level_ratio: 90,
            clean_file_forcibly_enable: true,
            delete_file_batch_max: 10,
            delete_commit_log_files_interval: Duration::from_millis(100),
            clean_resource_interval: Duration::from_secs(10),
            max_transfer_bytes_in_memory: 256 << 10,
            max_transfer_count_in_memory: 32,
            max_transfer_bytes_on_disk: 64 << 10,
            max_transfer_count_on_disk: 8,
            access_message_in_memory_max_ratio: 40,
            correct_offsets: true,
            delay_levels_ms: vec![
                S,
                5 * S,
                10 * S,
                30 * S,
                M,
                2 * M,
                3 * M,
                4 * M,
                5 * M,
                6 * M,
                7 * M,
                8 * M,
                9 * M,
                10 * M,
                20 * M,
                30 * M,
                H,
                2 * H,
            ],
        }
    }

    pub(crate) fn commit_log_dir(&self) -> PathBuf {
        self.commit_log_path
            .clone()
            .unwrap_or_else(|| self.root.join("commitlog"))
    }
}
