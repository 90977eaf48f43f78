//! The users table: which backend group serves an app of a user.
//!
//! An app is placed by a row of its own or by its role: `roundcube: { role: mail }` and `user1: { mail: node2 }` put
//! the roundcube of user1 on node2. A row of the app beats the row of its role; a role is not reachable as an app.
//! `UserTable` is what was loaded, `Users` what is in force: the loaded table with what commands have changed since.

use std::collections::HashSet;
use std::sync::Arc;

use super::name_table::NameTable;

/// Users, apps and placements of all users files. Groups are numbers; the caller knows what they stand for.
#[derive(Clone, Debug, Default)]
pub struct UserTable {
    users: NameTable,
    /// Where the placements of each user end; they start where those of the user before end.
    ends: Vec<u32>,
    placements: Vec<Placement>,
    /// Apps and roles share one numbering, since both are keys of a user's row.
    words: NameTable,
    /// The role of each word that is an app placed by role.
    roles: Vec<Option<u32>>,
    is_role: Vec<bool>,
    /// The tables that commands change, by name.
    managed: Vec<String>,
    /// Which of them each user is in: 0 is none, 1 the first. Empty while there are none.
    table_of: Vec<u8>,
    adding_to: u8,
}

/// The table in force: a new one is made for each change, and whoever has the old one keeps it.
#[derive(Clone, Debug, Default)]
pub struct Users {
    base: Arc<UserTable>,
    /// Rows that stand instead of those in `base`, few compared with it.
    changed: Option<Arc<Changed>>,
}

#[derive(Clone, Debug)]
struct Changed {
    /// Has the words of `base`, with the same numbers, and its own after them.
    table: UserTable,
    /// Users of `table` that are gone.
    removed: HashSet<u32>,
}

/// Changes beyond this are merged into the table: a command then costs what a load of the table does.
const MANY_CHANGES: usize = 1024;

/// A user's row: what it says of which app or role, as the number of a group.
pub type Row = Vec<(String, u32)>;

#[derive(Clone, Copy, Debug)]
struct Placement {
    word: u32,
    group: u32,
}

/// What the table says of a user and an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    At { user: u32, app: u32, group: u32 },
    UnknownApp { user: u32 },
    UnknownUser,
}

impl UserTable {
    /// What is added from here on belongs to a managed table, or to none.
    pub fn begin(&mut self, managed: Option<&str>) {
        self.adding_to = managed.map_or(0, |name| self.table_number(name));
    }

    /// Tables beyond 255 are one: nobody has that many.
    fn table_number(&mut self, name: &str) -> u8 {
        let index = self.managed.iter().position(|other| other == name).unwrap_or_else(|| {
            self.managed.push(name.to_owned());
            self.managed.len() - 1
        });
        u8::try_from(index + 1).unwrap_or(u8::MAX)
    }

    /// The names of the managed tables.
    pub fn managed(&self) -> impl Iterator<Item = &str> {
        self.managed.iter().map(String::as_str)
    }

    /// The managed table that a user is in.
    fn table_of(&self, user: u32) -> Option<&str> {
        let number = usize::from(*self.table_of.get(user as usize)?);
        self.managed.get(number.checked_sub(1)?).map(String::as_str)
    }

    /// Declares an app that is placed by a role.
    pub fn add_app(&mut self, app: &str, role: &str) {
        let role = self.word(role);
        let app = self.word(app);
        if let Some(slot) = self.roles.get_mut(app as usize) {
            *slot = Some(role);
        }
        if let Some(slot) = self.is_role.get_mut(role as usize) {
            *slot = true;
        }
    }

    /// Adds a user with the group of each of its apps and roles; `false` if there is one of that name already.
    pub fn add_user<'a>(&mut self, user: &str, placements: impl IntoIterator<Item = (&'a str, u32)>) -> bool {
        if !self.users.insert(user).1 {
            return false;
        }
        for (word, group) in placements {
            let word = self.word(word);
            self.placements.push(Placement { word, group });
        }
        self.ends.push(u32::try_from(self.placements.len()).unwrap_or(u32::MAX));
        if self.adding_to > 0 || !self.table_of.is_empty() {
            self.table_of.resize(self.users.len() - 1, 0);
            self.table_of.push(self.adding_to);
        }
        true
    }

    /// The apps that are placed by a role, each with its role.
    pub fn apps(&self) -> Vec<(&str, &str)> {
        let app = |(app, role): (u32, &Option<u32>)| Some((self.words.name(app), self.words.name((*role)?)));
        (0..).zip(&self.roles).filter_map(app).collect()
    }

    /// A table with the same words and no users.
    fn like(&self) -> Self {
        Self {
            words: self.words.clone(),
            roles: self.roles.clone(),
            is_role: self.is_role.clone(),
            managed: self.managed.clone(),
            ..Self::default()
        }
    }

    /// The rows of all users, with the managed table that each is in.
    pub fn rows(&self) -> impl Iterator<Item = (Option<&str>, &str, impl Iterator<Item = (&str, u32)>)> {
        let users = (0..).take(self.users.len());
        users.map(|user| (self.table_of(user), self.users.name(user), self.row(user)))
    }

    fn row(&self, user: u32) -> impl Iterator<Item = (&str, u32)> {
        self.placements_of(user).iter().map(|placement| (self.words.name(placement.word), placement.group))
    }

    fn placements_of(&self, user: u32) -> &[Placement] {
        let start = user.checked_sub(1).and_then(|before| self.ends.get(before as usize)).copied().unwrap_or_default();
        let end = self.ends.get(user as usize).copied().unwrap_or_default();
        self.placements.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The same table with the rows of managed tables replaced.
    #[must_use]
    fn with_managed<'a>(&self, tables: &[&str], rows: impl Iterator<Item = (&'a str, &'a str, &'a [(String, u32)])>) -> Self {
        let mut new = self.like();
        for (table, user, row) in self.rows().filter(|(table, ..)| table.is_none_or(|table| !tables.contains(&table))) {
            new.begin(table);
            new.add_user(user, row);
        }
        for (table, user, row) in rows {
            new.begin(Some(table));
            new.add_user(user, row.iter().map(|(word, group)| (word.as_str(), *group)));
        }
        new.shrink();
        new
    }

    fn word(&mut self, word: &str) -> u32 {
        let (row, new) = self.words.insert(word);
        if new {
            self.roles.push(None);
            self.is_role.push(false);
        }
        row
    }

    pub fn shrink(&mut self) {
        self.users.shrink();
        self.ends.shrink_to_fit();
        self.placements.shrink_to_fit();
        self.table_of.shrink_to_fit();
    }

    /// Where an app of a user is. The cost does not depend on the number of users.
    pub fn find(&self, user: &str, app: &str) -> Placed {
        match self.users.get(user) {
            Some(user) => self.find_in_row(user, app),
            None => Placed::UnknownUser,
        }
    }

    fn find_in_row(&self, user: u32, app: &str) -> Placed {
        let unknown = Placed::UnknownApp { user };
        let Some(app) = self.words.get(app) else { return unknown };
        let row = self.placements_of(user);
        let group_of = |word: u32| row.iter().find(|placement| placement.word == word).map(|placement| placement.group);
        if self.is_role.get(app as usize) == Some(&true) && self.roles.get(app as usize) == Some(&None) {
            return unknown;
        }
        let by_role = || self.roles.get(app as usize).copied().flatten().and_then(group_of);
        match group_of(app).or_else(by_role) {
            Some(group) => Placed::At { user, app, group },
            None => unknown,
        }
    }

    /// The role that places an app, if it is placed by one.
    pub fn role_of(&self, app: &str) -> Option<&str> {
        let role = self.roles.get(self.words.get(app)? as usize).copied().flatten()?;
        Some(self.words.name(role))
    }

    pub fn user_name(&self, user: u32) -> &str {
        self.users.name(user)
    }

    pub fn app_name(&self, app: u32) -> &str {
        self.words.name(app)
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Bytes held, for the benchmark.
    pub fn size(&self) -> usize {
        self.users.size() + self.words.size() + self.ends.capacity() * 4 + self.placements.capacity() * 8 + self.table_of.capacity()
    }
}

impl Users {
    pub fn new(base: UserTable) -> Self {
        Self { base: Arc::new(base), changed: None }
    }

    /// Where an app of a user is. The cost does not depend on the number of users.
    pub fn find(&self, user: &str, app: &str) -> Placed {
        let Some(changed) = &self.changed else { return self.base.find(user, app) };
        let Some(row) = changed.table.users.get(user) else { return self.base.find(user, app) };
        if changed.removed.contains(&row) {
            return Placed::UnknownUser;
        }
        match changed.table.find_in_row(row, app) {
            Placed::At { app, group, .. } => Placed::At { user: self.beyond_base(row), app, group },
            _ => Placed::UnknownApp { user: self.beyond_base(row) },
        }
    }

    /// Users of `changed` are numbered after those of `base`.
    fn beyond_base(&self, row: u32) -> u32 {
        row + u32::try_from(self.base.len()).unwrap_or(u32::MAX)
    }

    /// The table that has the names of all words.
    fn words(&self) -> &UserTable {
        self.changed.as_ref().map_or(&self.base, |changed| &changed.table)
    }

    pub fn role_of(&self, app: &str) -> Option<&str> {
        self.words().role_of(app)
    }

    /// The apps that are placed by a role, each with its role.
    pub fn apps(&self) -> Vec<(&str, &str)> {
        self.words().apps()
    }

    pub fn app_name(&self, app: u32) -> &str {
        self.words().app_name(app)
    }

    pub fn user_name(&self, user: u32) -> &str {
        match (&self.changed, user.checked_sub(self.beyond_base(0))) {
            (Some(changed), Some(row)) => changed.table.users.name(row),
            _ => self.base.user_name(user),
        }
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.counted(|_| true)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many users a managed table has.
    pub fn len_of(&self, table: &str) -> usize {
        self.counted(|own| own == Some(table))
    }

    fn counted(&self, counts: impl Fn(Option<&str>) -> bool) -> usize {
        let per_table: Vec<bool> = std::iter::once(None).chain(self.base.managed().map(Some)).map(&counts).collect();
        let base = match self.base.table_of.is_empty() {
            true => {
                if per_table.first() == Some(&true) {
                    self.base.len()
                } else {
                    0
                }
            }
            false => self.base.table_of.iter().filter(|number| per_table.get(usize::from(**number)) == Some(&true)).count(),
        };
        let Some(changed) = &self.changed else { return base };
        let mut count = base;
        for (row, (table, user, _)) in (0..).zip(changed.table.rows()) {
            if self.base.users.get(user).is_some_and(|old| counts(self.base.table_of(old))) {
                count -= 1;
            }
            if counts(table) && !changed.removed.contains(&row) {
                count += 1;
            }
        }
        count
    }

    pub fn managed(&self) -> impl Iterator<Item = &str> {
        self.base.managed()
    }

    /// A user's row, with the managed table that it is in.
    pub fn row(&self, user: &str) -> Option<(Option<&str>, Row)> {
        let owned = |table: &UserTable, row: u32| table.row(row).map(|(word, group)| (word.to_owned(), group)).collect();
        if let Some(changed) = &self.changed
            && let Some(row) = changed.table.users.get(user)
        {
            return (!changed.removed.contains(&row)).then(|| (changed.table.table_of(row), owned(&changed.table, row)));
        }
        let row = self.base.users.get(user)?;
        Some((self.base.table_of(row), owned(&self.base, row)))
    }

    /// All rows.
    pub fn rows(&self) -> Vec<(Option<&str>, &str, Row)> {
        let is_old = |user: &str| self.changed.as_ref().is_some_and(|changed| changed.table.users.get(user).is_some());
        let base = self.base.rows().filter(|(_, user, _)| !is_old(user));
        let mut rows: Vec<(Option<&str>, &str, Row)> =
            base.map(|(table, user, row)| (table, user, row.map(|(word, group)| (word.to_owned(), group)).collect())).collect();
        if let Some(changed) = &self.changed {
            let new = (0..).zip(changed.table.rows()).filter(|(row, _)| !changed.removed.contains(row));
            rows.extend(new.map(|(_, (table, user, row))| (table, user, row.map(|(word, group)| (word.to_owned(), group)).collect())));
        }
        rows
    }

    /// With another row of a user in a managed table; `None`: without the user.
    #[must_use]
    pub fn with_row(&self, table: &str, user: &str, row: Option<&[(String, u32)]>) -> Self {
        let old = self.changed.as_deref();
        let mut new = Changed { table: old.map_or(self.base.as_ref(), |old| &old.table).like(), removed: HashSet::new() };
        for (number, (own, name, row)) in (0..).zip(old.into_iter().flat_map(|old| old.table.rows())) {
            if name == user {
                continue;
            }
            new.table.begin(own);
            new.table.add_user(name, row);
            if old.is_some_and(|old| old.removed.contains(&number)) {
                new.removed.extend(new.table.users.get(name));
            }
        }
        new.table.begin(Some(table));
        new.table.add_user(user, row.into_iter().flatten().map(|(word, group)| (word.as_str(), *group)));
        if row.is_none() {
            new.removed.extend(new.table.users.get(user));
        }
        let new = Self { base: self.base.clone(), changed: Some(Arc::new(new)) };
        if new.changed.as_ref().is_some_and(|changed| changed.table.len() > MANY_CHANGES) { new.merged() } else { new }
    }

    /// With all rows of managed tables replaced by these, each of one of the tables.
    #[must_use]
    pub fn with_tables<'a>(&self, tables: &[&str], rows: impl Iterator<Item = (&'a str, &'a str, &'a [(String, u32)])>) -> Self {
        Self::new(self.merged().base.with_managed(tables, rows))
    }

    fn merged(&self) -> Self {
        let Some(changed) = &self.changed else { return self.clone() };
        let mut merged = changed.table.like();
        for (table, user, row) in self.rows() {
            merged.begin(table);
            merged.add_user(user, row.iter().map(|(word, group)| (word.as_str(), *group)));
        }
        merged.shrink();
        Self::new(merged)
    }

    /// Bytes held, for the benchmark.
    pub fn size(&self) -> usize {
        self.base.size() + self.changed.as_ref().map_or(0, |changed| changed.table.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_placed_by_its_own_row_or_by_its_role() {
        let mut table = UserTable::default();
        table.add_app("roundcube", "mail");
        table.add_app("phpmyadmin", "mysql");
        assert!(table.add_user("user1", [("mysql", 1), ("mail", 2)]));
        assert!(table.add_user("user2", [("mail", 3), ("roundcube", 4), ("wiki", 5)]));
        assert!(!table.add_user("user1", []));
        let group = |user, app| match table.find(user, app) {
            Placed::At { group, .. } => Ok(group),
            other => Err(other),
        };
        assert_eq!(group("user1", "phpmyadmin"), Ok(1));
        assert_eq!(group("user1", "roundcube"), Ok(2));
        assert_eq!(group("user2", "roundcube"), Ok(4), "a row of the app beats its role");
        assert_eq!(group("user2", "wiki"), Ok(5));
        assert_eq!(group("user2", "phpmyadmin"), Err(Placed::UnknownApp { user: 1 }));
        assert_eq!(group("user1", "mail"), Err(Placed::UnknownApp { user: 0 }), "a role is no app");
        assert_eq!(group("user1", "nothing"), Err(Placed::UnknownApp { user: 0 }));
        assert_eq!(group("nobody", "wiki"), Err(Placed::UnknownUser));
        assert_eq!((table.user_name(1), table.len()), ("user2", 2));
    }

    #[test]
    fn changes_stand_before_the_loaded_table_and_are_merged_in_time() {
        let mut table = UserTable::default();
        table.add_app("roundcube", "mail");
        table.add_user("fixed", [("mail", 1)]);
        table.begin(Some("panel"));
        table.add_user("user1", [("mail", 1), ("wiki", 2)]);
        table.add_user("user2", [("mail", 1)]);
        let loaded = Users::new(table);
        assert_eq!(loaded.row("fixed").unwrap().0, None);
        assert_eq!(loaded.row("user1").unwrap(), (Some("panel"), vec![("mail".to_owned(), 1), ("wiki".to_owned(), 2)]));
        let at = |users: &Users, user: &str, app: &str| match users.find(user, app) {
            Placed::At { user, app, group } => Some((users.user_name(user).to_owned(), users.app_name(app).to_owned(), group)),
            _ => None,
        };
        let found = |user: &str, app: &str, group| Some((user.to_owned(), app.to_owned(), group));
        let row = |group| vec![("mail".to_owned(), group), ("shop".to_owned(), group)];
        let moved = loaded.with_row("panel", "user1", Some(&row(7)));
        assert_eq!(at(&moved, "user1", "roundcube"), found("user1", "roundcube", 7));
        assert_eq!(at(&moved, "user1", "shop"), found("user1", "shop", 7), "a word that is new");
        assert_eq!((at(&moved, "user1", "wiki"), moved.find("user1", "wiki")), (None, Placed::UnknownApp { user: 3 }));
        assert_eq!(at(&moved, "user2", "roundcube"), found("user2", "roundcube", 1), "others are found where they were");
        assert_eq!(at(&loaded, "user1", "roundcube"), found("user1", "roundcube", 1), "whoever has the old table keeps it");
        let less = moved.with_row("panel", "user2", None);
        assert_eq!((less.find("user2", "mail"), less.row("user2"), less.len(), less.len_of("panel")), (Placed::UnknownUser, None, 2, 1));
        let back = less.with_row("panel", "user2", Some(&row(3)));
        assert_eq!((at(&back, "user2", "shop"), back.len(), back.len_of("panel")), (found("user2", "shop", 3), 3, 2));
        let mut many = back;
        for n in 0..MANY_CHANGES {
            many = many.with_row("panel", &format!("new{n}"), Some(&row(9)));
        }
        assert!(many.changed.is_none() || many.changed.as_ref().unwrap().table.len() < 10, "they were merged");
        assert_eq!(many.len(), 3 + MANY_CHANGES);
        assert_eq!(
            (at(&many, "new0", "shop"), at(&many, "fixed", "roundcube")),
            (found("new0", "shop", 9), found("fixed", "roundcube", 1))
        );
        let only = many.with_tables(&["panel"], [("panel", "lone", row(5).as_slice())].into_iter());
        assert_eq!((only.len(), only.len_of("panel"), at(&only, "lone", "roundcube")), (2, 1, found("lone", "roundcube", 5)));
        assert_eq!(at(&only, "fixed", "roundcube"), found("fixed", "roundcube", 1), "other tables stay");
    }
}
