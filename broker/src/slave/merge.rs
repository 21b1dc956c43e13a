//! What a slave makes of what its master sent: decisions over tables, without a socket or a lock.

use std::collections::BTreeMap;

use remoting::protocol::body::DataVersion;

/// Offsets by queue of one group on one topic.
type Queues = BTreeMap<i32, i64>;
/// Tables by `topic@group`, as 43 has them.
pub type OffsetTable = BTreeMap<String, Queues>;

/// The offsets that a slave keeps of one group on one topic.
///
/// What the master changed since the last look (`seen`) counts, also backwards: somebody reset it. What it did not change
/// counts unless the group committed more to this slave meanwhile, while the master was away. At the first look after an
/// absence nothing is known of changes, and the larger offset counts: a master that was killed remembers offsets of seconds ago.
pub fn offsets(local: &Queues, seen: Option<&Queues>, master: &Queues) -> Queues {
    master
        .iter()
        .map(|(queue, told)| {
            let unchanged = seen.is_none_or(|seen| seen.get(queue) == Some(told));
            let kept = local.get(queue).filter(|_| unchanged).copied();
            (*queue, kept.unwrap_or(*told).max(*told))
        })
        .collect()
}

/// One page of a table that is asked for in pages (5.x), or a whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The table's version when the page was made.
    pub version: DataVersion,
    /// Rows by name.
    pub rows: BTreeMap<String, T>,
    /// Rows of the whole table; absent where pages are unknown, and the page is everything.
    pub total: Option<usize>,
}

/// A table that grows page by page.
#[derive(Debug)]
pub struct Pages<T> {
    version: Option<DataVersion>,
    rows: BTreeMap<String, T>,
    /// How often the table changed while it was being read.
    restarts: u32,
}

/// What to do after a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask for the rows from here on.
    From(usize),
    /// The table is complete.
    Done,
    /// It changes faster than it can be read.
    GiveUp,
}

/// A table that changed so often while it was read is left for the next round.
const MOST_RESTARTS: u32 = 5;

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self {
            version: None,
            rows: BTreeMap::new(),
            restarts: 0,
        }
    }
}

impl<T> Pages<T> {
    /// The version that the next page should belong to; none for the first.
    pub fn version(&self) -> Option<&DataVersion> {
        self.version.as_ref()
    }

    /// Takes a page in.
    pub fn add(&mut self, page: Page<T>) -> Next {
        let whole = page.total.is_none();
        let none_left = page.rows.is_empty();
        if self.version.is_some_and(|version| version != page.version) {
            self.version = None;
            self.rows.clear();
            self.restarts += 1;
            if !whole {
                return match self.restarts > MOST_RESTARTS {
                    true => Next::GiveUp,
                    false => Next::From(0),
                };
            }
        }
        self.version = Some(page.version);
        self.rows.extend(page.rows);
        if whole || none_left || page.total.is_some_and(|total| self.rows.len() >= total) {
            return Next::Done;
        }
        Next::From(self.rows.len())
    }

    /// The rows so far.
    pub fn into_rows(self) -> (DataVersion, BTreeMap<String, T>) {
        (self.version.unwrap_or_default(), self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(offsets: &[(i32, i64)]) -> Queues {
        offsets.iter().copied().collect()
    }

    #[test]
    fn after_an_absence_the_larger_offset_counts() {
        let local = queues(&[(0, 7), (1, 3)]);
        let master = queues(&[(0, 5), (1, 9), (2, 1)]);
        assert_eq!(
            offsets(&local, None, &master),
            queues(&[(0, 7), (1, 9), (2, 1)])
        );
    }

    #[test]
    fn what_the_master_changed_counts_also_backwards_and_what_it_dropped_goes() {
        let local = queues(&[(0, 7), (1, 9), (3, 4)]);
        let seen = queues(&[(0, 7), (1, 9), (3, 4)]);
        let master = queues(&[(0, 2), (1, 9)]);
        assert_eq!(
            offsets(&local, Some(&seen), &master),
            queues(&[(0, 2), (1, 9)])
        );
    }

    #[test]
    fn what_was_committed_here_stays_while_the_master_says_nothing_new() {
        let local = queues(&[(0, 8)]);
        let seen = queues(&[(0, 7)]);
        assert_eq!(
            offsets(&local, Some(&seen), &queues(&[(0, 7)])),
            queues(&[(0, 8)])
        );
        assert_eq!(
            offsets(&local, Some(&seen), &queues(&[(0, 6)])),
            queues(&[(0, 6)])
        );
    }

    fn page(version: i64, names: &[&str], total: Option<usize>) -> Page<()> {
        Page {
            version: DataVersion {
                counter: version,
                ..DataVersion::default()
            },
            rows: names.iter().map(|n| (n.to_string(), ())).collect(),
            total,
        }
    }

    #[test]
    fn a_master_without_pages_sends_everything_at_once() {
        let mut pages = Pages::default();
        assert_eq!(pages.add(page(1, &["a", "b"], None)), Next::Done);
        assert_eq!(pages.into_rows().1.len(), 2);
    }

    #[test]
    fn pages_are_put_together_and_read_again_when_the_table_changes_between_two() {
        let mut pages = Pages::default();
        assert_eq!(pages.add(page(1, &["a", "b"], Some(3))), Next::From(2));
        assert_eq!(pages.add(page(2, &["c"], Some(3))), Next::From(0));
        assert_eq!(pages.version(), None);
        assert_eq!(pages.add(page(2, &["a", "c"], Some(3))), Next::From(2));
        assert_eq!(pages.add(page(2, &["d"], Some(3))), Next::Done);
        let (version, rows) = pages.into_rows();
        assert_eq!(version.counter, 2);
        assert_eq!(rows.into_keys().collect::<Vec<_>>(), ["a", "c", "d"]);
    }

    #[test]
    fn pages_end_although_the_total_is_never_reached_or_the_table_never_rests() {
        let mut pages = Pages::default();
        assert_eq!(pages.add(page(1, &["a"], Some(3))), Next::From(1));
        assert_eq!(pages.add(page(1, &[], Some(3))), Next::Done);
        let mut pages = Pages::default();
        let mut version = 0;
        let end = loop {
            version += 1;
            match pages.add(page(version, &["a"], Some(2))) {
                Next::From(_) => assert!(version < 100),
                end => break end,
            }
        };
        assert_eq!(end, Next::GiveUp);
    }
}
