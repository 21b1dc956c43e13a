//! What goes away with time or want of space, and what the disk's filling does to writers.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::error::Error;
use crate::store::{Store, chain};

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskUsage {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

impl DiskUsage {
    /// As `df` computes it: what the superuser keeps for himself counts neither as used nor as free.
    pub(crate) fn ratio(self) -> f64 {
        if self.total == 0 {
            0.0
        } else {
            1.0 - self.free as f64 / self.total as f64
        }
    }
}

pub(crate) fn disk_usage(path: &Path) -> DiskUsage {
    match rustix::fs::statvfs(path) {
        Ok(stat) => DiskUsage {
            total: (stat.f_blocks - (stat.f_bfree - stat.f_bavail)) * stat.f_frsize,
            free: stat.f_bavail * stat.f_frsize,
        },
        Err(_) => DiskUsage::default(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Expired,
    Forced,
}

impl Store {
    fn disk_percent(&self) -> f64 {
        let log = disk_usage(self.log.dir()).ratio();
        let root = disk_usage(&self.config.root).ratio();
        log.max(root) * 100.0
    }

    /// Marks the store full above `diskSpaceWarningLevelRatio` and takes the mark away below.
    pub(crate) fn check_disk(&self) {
        let limit = self.live.refused_above();
        let percent = self.disk_percent();
        let full = percent > limit;
        if full != self.is_disk_full.load(Ordering::Acquire) {
            if full {
                let text = format!("{percent:.1} % of the disk is used, the limit is {limit} %");
                tracing::error!(text, "writes are refused");
                *self.disk_full.lock() = Some(text);
            } else if self.written() < self.appended() {
                // ENOSPC came before the ratio: only a write that succeeds clears that.
                return;
            } else {
                tracing::info!("there is room on the disk again");
            }
            self.is_disk_full.store(full, Ordering::Release);
        }
    }

    /// Request 329: delete expired segments at the next check, whatever the hour.
    pub fn delete_expired_now(&self) {
        self.delete_now.store(true, Ordering::Release);
    }

    pub(crate) fn retention_round(&self) {
        if self.poisoned().is_some() {
            return;
        }
        let result = self
            .delete_segments()
            .and_then(|n| if n > 0 { self.expire() } else { Ok(()) });
        if let Err(error) = result {
            tracing::error!(error = chain(&error), "old files could not be deleted");
        }
    }

    /// Upstream `CleanCommitLogService.deleteExpiredFiles`: by hour, by fill level, or on request.
    fn delete_segments(&self) -> Result<usize, Error> {
        let percent = self.disk_percent();
        let due = self.live.deletes_at(self.clock.local_hour());
        let full = percent > self.live.full_above();
        let forced = self
            .live
            .forced_above()
            .is_some_and(|limit| percent > limit);
        let asked = self.delete_now.swap(false, Ordering::AcqRel);
        if !(due || full || forced || asked) {
            return Ok(0);
        }
        let mut deleted = 0;
        while deleted < self.config.delete_file_batch_max {
            let Some(reason) = self.first_is_due(forced)? else {
                break;
            };
            if deleted > 0 {
                // A large file costs the file system some work.
                std::thread::sleep(self.config.delete_commit_log_files_interval);
            }
            let first = self.log.min();
            // Queues that lost their entries in a power cut would begin anew below what consumers have read: so they are on disk first. A disk that is
            // too full for that is no reason to keep what fills it.
            if let Err(error) = self.sync_queues_up_to(first + self.log.size()) {
                tracing::warn!(error = chain(&error), "the queues could not be synced");
            }
            if !self.compact_frames()? {
                break;
            }
            if !self.log.remove_first()? {
                break;
            }
            tracing::info!(
                segment = first,
                ?reason,
                percent,
                "a commit log file was deleted"
            );
            deleted += 1;
        }
        Ok(deleted)
    }

    /// In a log of frames it is written down which entries are given up; false if the segment must stay.
    fn compact_frames(&self) -> Result<bool, Error> {
        match &self.frames {
            Some(frames) => frames.compact(|at| self.header_at(at)),
            None => Ok(true),
        }
    }

    /// The oldest segment, if it may go: never one that is not wholly dispatched and flushed.
    fn first_is_due(&self, forced: bool) -> Result<Option<Reason>, Error> {
        let Some(first) = self.log.at(self.log.min()) else {
            return Ok(None);
        };
        if first.end() > self.confirm_offset().min(self.flushed())
            || first.end() >= self.deletable.load(Ordering::Acquire)
        {
            return Ok(None);
        }
        if forced {
            return Ok(Some(Reason::Forced));
        }
        let modified = fs::metadata(&first.path)
            .and_then(|m| m.modified())
            .map_err(|e| Error::io("look at", &first.path, e))?;
        let modified = modified
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as i64);
        let reserved = self.live.reserved_ms();
        Ok((self.clock.now_ms().saturating_sub(modified) > reserved).then_some(Reason::Expired))
    }

    fn expire(&self) -> Result<(), Error> {
        let min = self.log.min();
        self.queues.expire(min)?;
        self.index
            .as_ref()
            .map_or(Ok(()), |index| index.expire(min))
    }
}
