//! Names to numbers: a hash table that keeps each name once, in one arena.
//!
//! Used for domains and users, of which there may be a million. A row costs its text and about 20 bytes; the hasher is
//! seeded per process, so that no client can choose names that collide.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// A table from names to row numbers, which count up from zero in the order of insertion.
#[derive(Clone, Debug, Default)]
pub struct NameTable {
    arena: String,
    /// Where each name ends in the arena; it starts where the one before it ends.
    ends: Vec<u32>,
    table: HashTable<u32>,
    hasher: RandomState,
}

impl NameTable {
    /// The row of a name, if it has one.
    pub fn get(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name.as_bytes());
        self.table.find(hash, |row| self.name(*row) == name).copied()
    }

    /// The row of a name, which is added if it is new. The second value says whether it was.
    ///
    /// # Panics
    /// When all names together exceed 4 GiB, far beyond what a configuration may hold.
    pub fn insert(&mut self, name: &str) -> (u32, bool) {
        if let Some(row) = self.get(name) {
            return (row, false);
        }
        self.arena.push_str(name);
        let row = u32::try_from(self.ends.len()).expect("fewer rows than the arena has bytes");
        self.ends.push(u32::try_from(self.arena.len()).expect("a configuration file is at most 1 GiB"));
        let hash = self.hasher.hash_one(name.as_bytes());
        let Self { arena, ends, table, hasher } = self;
        table.insert_unique(hash, row, |row| hasher.hash_one(slice(arena, ends, *row).as_bytes()));
        (row, true)
    }

    /// The name of a row; empty for a row that does not exist.
    pub fn name(&self, row: u32) -> &str {
        slice(&self.arena, &self.ends, row)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Gives back what growing reserved and no row uses; called once a table is complete.
    pub fn shrink(&mut self) {
        self.arena.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Bytes held, for the benchmark and `status`.
    pub fn size(&self) -> usize {
        self.arena.capacity() + self.ends.capacity() * 4 + self.table.allocation_size()
    }
}

fn slice<'a>(arena: &'a str, ends: &[u32], row: u32) -> &'a str {
    let row = row as usize;
    let start = row.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or_default();
    let end = ends.get(row).copied().unwrap_or_default();
    arena.get(start as usize..end as usize).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_count_up_and_names_are_found_again() {
        let mut table = NameTable::default();
        for n in 0..10_000 {
            assert_eq!(table.insert(&format!("user{n}")), (n, true));
        }
        assert_eq!(table.insert("user7"), (7, false));
        assert_eq!(table.get("user9999"), Some(9999));
        assert_eq!(table.get("user10000"), None);
        assert_eq!(table.name(42), "user42");
        assert_eq!(table.name(10_000), "");
        assert_eq!(table.len(), 10_000);
    }
}
