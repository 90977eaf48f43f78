//! The users table: which backend group serves an app of a user.
//!
//! An app is placed by a row of its own or by its role: `roundcube: { role: mail }` and `user1: { mail: node2 }` put
//! the roundcube of user1 on node2. A row of the app beats the row of its role; a role is not reachable as an app.

use super::name_table::NameTable;

/// Users, apps and placements of all users files. Groups are numbers; the caller knows what they stand for.
#[derive(Debug, Default)]
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
}

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
        true
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
    }

    /// Where an app of a user is. The cost does not depend on the number of users.
    pub fn find(&self, user: &str, app: &str) -> Placed {
        let Some(user) = self.users.get(user) else { return Placed::UnknownUser };
        let unknown = Placed::UnknownApp { user };
        let Some(app) = self.words.get(app) else { return unknown };
        let start = user.checked_sub(1).and_then(|before| self.ends.get(before as usize)).copied().unwrap_or_default();
        let end = self.ends.get(user as usize).copied().unwrap_or_default();
        let row = self.placements.get(start as usize..end as usize).unwrap_or_default();
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
        self.users.size() + self.words.size() + self.ends.capacity() * 4 + self.placements.capacity() * 8
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
}
