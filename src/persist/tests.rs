//! Stories of the state file: what is kept, what is shared, what happens when two want it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::config::files::Texts;

fn texts(of: &[(&str, &str)]) -> (Vec<(PathBuf, [u8; 32])>, Texts) {
    let texts: Texts = of.iter().map(|(path, text)| (PathBuf::from(path), Arc::from(*text))).collect();
    (texts.iter().map(|(path, text)| (path.clone(), crate::config::digest_of(text))).collect(), texts)
}

fn keep(store: &Store, number: u64, of: &[(&str, &str)]) {
    keep_with(store, number, of, &HashMap::new(), &[]);
}

fn keep_with(store: &Store, number: u64, of: &[(&str, &str)], good: &HashMap<&Path, KeptSite>, stay: &[PathBuf]) {
    let (files, texts) = texts(of);
    let generation = Generation {
        number,
        time: number,
        digest: digest_of(&files),
        by: "test".to_owned(),
        rolled_back_to: None,
        sites: 1,
        broken_sites: Vec::new(),
        changes: Vec::new(),
    };
    let kept = Kept {
        generation: &generation,
        files: &files,
        texts: &texts,
        good: HashMap::new(),
        stay: &[],
        seeds: Vec::new(),
        tables: &[],
        lost_tables: &[],
    };
    store.keep_applied(&Kept { good: good.clone(), stay, ..kept }).unwrap();
}

#[test]
fn configurations_are_kept_with_their_files_and_forgotten_in_turn() {
    let directory = tempfile::TempDir::new().unwrap();
    let store = Store::open(&directory.path().join("deep/state")).unwrap();
    assert_eq!(store.generations().unwrap(), []);
    keep(&store, 1, &[("main", "m"), ("a", "a1")]);
    keep(&store, 2, &[("main", "m"), ("a", "a2")]);
    keep(&store, 3, &[("main", "m"), ("a", "a2")]);
    let numbers = |store: &Store| store.generations().unwrap().iter().map(|generation| generation.number).collect::<Vec<_>>();
    assert_eq!(numbers(&store), [1, 3], "the same again takes the place of the one before");
    assert_eq!(&*store.texts_of(1).unwrap()[Path::new("a")], "a1");
    for number in 4..20 {
        keep(&store, number, &[("main", "m"), ("a", &format!("a{number}"))]);
    }
    assert_eq!(numbers(&store), (10..20).collect::<Vec<_>>());
    assert_eq!(&*store.texts_of(12).unwrap()[Path::new("main")], "m", "what others use is not forgotten");
    assert!(matches!(store.texts_of(3), Err(Error::NoGeneration(3))));
    assert_eq!(store.text(&crate::config::digest_of("a2")).unwrap(), None, "what nobody uses is");
}

#[test]
fn the_way_back_that_somebody_was_promised_stays() {
    let directory = tempfile::TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    keep(&store, 1, &[("main", "good")]);
    store.set_pending(Some(&Pending { former: 1, until: 5 })).unwrap();
    keep(&store, 2, &[("main", "good")]);
    assert_eq!(&*store.texts_of(1).unwrap()[Path::new("main")], "good", "the same again does not take its place");
    for number in 3..30 {
        keep(&store, number, &[("main", &format!("try {number}"))]);
    }
    assert_eq!(&*store.texts_of(1).unwrap()[Path::new("main")], "good", "nor do many");
    assert_eq!(store.generations().unwrap().len(), KEPT_GENERATIONS);
    store.set_pending(None).unwrap();
    keep(&store, 30, &[("main", "last")]);
    assert!(store.texts_of(1).is_err());
}

#[test]
fn sites_keep_their_text_while_they_are_kept() {
    let directory = tempfile::TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let site = KeptSite::new("a", &crate::config::digest_of("good"));
    keep_with(&store, 1, &[("a.yaml", "good")], &HashMap::from([(Path::new("a.yaml"), site.clone())]), &[]);
    for number in 2..30 {
        keep_with(&store, number, &[("a.yaml", &format!("broken {number}"))], &HashMap::new(), &[PathBuf::from("a.yaml")]);
    }
    assert_eq!(store.sites().unwrap()[Path::new("a.yaml")], site);
    assert_eq!(store.site_text(&site).unwrap().as_deref(), Some("good"));
    keep(&store, 30, &[("b.yaml", "b")]);
    assert!(store.sites().unwrap().is_empty());
}

#[test]
fn tables_and_words_of_the_operator_survive_and_have_one_owner() {
    let directory = tempfile::TempDir::new().unwrap();
    let row = |group: &str| vec![("mail".to_owned(), group.to_owned())];
    let record = BackendRecord { state: crate::balance::hand::Standing::Draining, by: "root".to_owned(), time: 5 };
    {
        let store = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(Error::InUse { .. })));
        assert_eq!(store.table_version("panel").unwrap(), None);
        assert_eq!(store.keep_table("panel", [("user2", row("b")), ("user1", row("a"))].into_iter()).unwrap(), 1);
        assert_eq!(store.keep_row("panel", "user3", Some(&row("c"))).unwrap(), 2);
        assert_eq!(store.keep_row("panel", "user2", None).unwrap(), 3);
        store.keep_table("panel2", [("user9", row("z"))].into_iter()).unwrap();
        store.keep_backend("cloud", "S1", Some(&record)).unwrap();
        store.hand_over();
        assert!(matches!(store.generations(), Err(Error::HandedOver)));
        drop(Store::open(directory.path()).unwrap());
        store.take_back();
        assert_eq!(store.table_version("panel").unwrap(), Some(3));
    }
    let store = Store::open(directory.path()).unwrap();
    let mut rows = BTreeMap::new();
    store.rows("panel", |user, row| drop(rows.insert(user.to_owned(), row))).unwrap();
    assert_eq!(rows, BTreeMap::from([("user1".to_owned(), row("a")), ("user3".to_owned(), row("c"))]));
    assert_eq!(store.backends().unwrap(), BTreeMap::from([(("cloud".to_owned(), "S1".to_owned()), record)]));
}

#[test]
fn a_file_that_is_none_is_told() {
    let directory = tempfile::TempDir::new().unwrap();
    fs::write(directory.path().join(FILE), "this was never a database, whatever it is called").unwrap();
    let error = Store::open(directory.path()).err().unwrap().to_string();
    assert!(error.contains(FILE) && error.contains("move it away"), "{error}");
}

#[test]
fn a_panic_of_the_library_costs_one_change() {
    let directory = tempfile::TempDir::new().unwrap();
    let store = Store::open(directory.path()).unwrap();
    keep(&store, 1, &[("main", "m")]);
    let panics = |transaction: &WriteTransaction| -> Result<(), redb::Error> {
        let _table = transaction.open_table(sites::SITES)?;
        panic!("a page that cannot be")
    };
    assert!(matches!(store.write(panics), Err(Error::Damaged { .. })));
    assert!(store.database.lock().unwrap().is_none(), "it is opened anew, as if it had never been read");
    keep(&store, 2, &[("main", "n")]);
    assert_eq!(store.generations().unwrap().len(), 2);
}

#[test]
fn a_file_whose_making_was_cut_short_is_made_again() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join(FILE);
    keep(&Store::open(directory.path()).unwrap(), 1, &[("main", "m")]);
    let good = fs::read(&path).unwrap();
    // As on a disk that was full, or after a crash: room is made, the head is there, and nothing that vouches for it.
    let mut unfinished = vec![0; good.len()];
    unfinished[9..HEAD].copy_from_slice(&good[9..HEAD]);
    for content in [unfinished, vec![0; 4096], vec![0; 5]] {
        fs::write(&path, content).unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.generations().unwrap(), []);
        keep(&store, 1, &[("main", "m")]);
    }
    // Something was kept here, and its head is lost: that is not for us to forget.
    let damaged: Vec<u8> = std::iter::repeat_n(0, 9).chain(good[9..].iter().copied()).collect();
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(Store::open(directory.path()), Err(Error::Damaged { .. })));
    assert_eq!(fs::read(&path).unwrap(), damaged);
}
