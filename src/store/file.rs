//! A store in one file (redb), for one process.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

mod database;
mod flows;
mod opening;
mod tables;

use super::{
    backend::{Flow, FlowLimits, Found, Holder, Kept, Store, Taken},
    error::{OpenError, StoreError, blocking},
    keys::{Context, FlowKey, RegistrationsKey, RouteKey, TokenKey},
};
use crate::model::{clock::UnixTime, seal::Sealer};
use database::{DatabaseFile, Failure};
use flows::{FlowTables, REMOVED_AT_ONCE};
use tables::{AGAIN, AGAIN_EXPIRY, CHECK, REGISTRATIONS, ROUTES, TOKENS};

/// The store in a file. Its work is done on threads that may block.
pub struct FileStore {
    file: Arc<DatabaseFile>,
    /// Who refreshes which token, and until when at most. One process has the file, so its memory will do.
    claims: Mutex<HashMap<TokenKey, (Holder, Instant)>>,
}

impl FileStore {
    /// Opens the file, or makes it (mode 0600), and its keys beside it where no other file is given. Its check record comes
    /// along.
    ///
    /// # Errors
    /// Where the file cannot be opened, another process has it open, or the keys are not the ones it was sealed with.
    pub async fn open(path: &Path, encryption_keys: Option<&Path>) -> Result<(Self, Sealer, Vec<u8>), OpenError> {
        let (path, encryption_keys) = (path.to_owned(), encryption_keys.map(Path::to_owned));
        let opened = blocking(move || opening::open(&path, encryption_keys.as_deref())).await??;
        let (file, sealer, record) = opened;
        Ok((Self { file: Arc::new(file), claims: Mutex::default() }, sealer, record))
    }

    async fn run<T, E>(&self, step: impl FnOnce(&Database) -> Result<T, E> + Send + 'static) -> Result<T, StoreError>
    where
        T: Send + 'static,
        E: Into<Failure>,
    {
        let file = Arc::clone(&self.file);
        blocking(move || file.run(step)).await?
    }
}

#[async_trait]
impl Store for FileStore {
    async fn add_flow(&self, flow: Flow, limits: FlowLimits, now: UnixTime) -> Result<(), StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            FlowTables::open(&transaction)?.add(&flow, limits, now)?;
            Ok::<_, Failure>(transaction.commit()?)
        })
        .await
    }

    async fn take_flow(&self, id: FlowKey, context: Context, now: UnixTime) -> Result<Taken, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            let (taken, changed) = FlowTables::open(&transaction)?.take(&id, &context, now)?;
            // A commit waits for the disk. Who guesses ids shall not make everybody wait.
            if changed {
                transaction.commit()?;
            }
            Ok::<_, Failure>(taken)
        })
        .await
    }

    async fn put_token(&self, key: TokenKey, route: RouteKey, sealed: Vec<u8>) -> Result<Option<Kept>, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            let replaced = {
                let (mut tokens, mut routes) = (transaction.open_table(TOKENS)?, transaction.open_table(ROUTES)?);
                let before = routes.insert(route.as_bytes(), key.as_bytes())?.map(|before| *before.value());
                let other = before.filter(|before| before != key.as_bytes());
                let replaced = match &other {
                    Some(other) => tokens.remove(other)?.map(|sealed| sealed.value().to_vec()),
                    None => None,
                };
                tokens.insert(key.as_bytes(), sealed.as_slice())?;
                other.map(|other| TokenKey::from_bytes(other).of_owner(route.owner())).zip(replaced)
            };
            transaction.commit()?;
            Ok::<_, redb::Error>(replaced)
        })
        .await
    }

    async fn token(&self, route: RouteKey) -> Result<Option<Found>, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_read()?;
            let Some(key) = transaction.open_table(ROUTES)?.get(route.as_bytes())?.map(|key| *key.value()) else {
                return Ok(None);
            };
            let Some(sealed) = transaction.open_table(TOKENS)?.get(&key)?.map(|sealed| sealed.value().to_vec()) else {
                return Ok(None);
            };
            let again = transaction.open_table(AGAIN)?.get(route.as_bytes())?.map(|until| until.value());
            let key = TokenKey::from_bytes(key).of_owner(route.owner());
            let (kept, again) = ((key, sealed), again.map(UnixTime::from_secs));
            Ok::<_, redb::Error>(Some(Found { kept, again }))
        })
        .await
    }

    async fn expect_again(&self, route: RouteKey, until: UnixTime, now: UnixTime) -> Result<bool, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            if transaction.open_table(ROUTES)?.get(route.as_bytes())?.is_none() {
                return Ok(false);
            }
            note_again(&transaction, &route, until, now)?;
            transaction.commit()?;
            Ok::<_, redb::Error>(true)
        })
        .await
    }

    async fn replace_token(&self, key: TokenKey, old: Vec<u8>, sealed: Vec<u8>) -> Result<bool, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            let there = {
                let mut tokens = transaction.open_table(TOKENS)?;
                let there = tokens.get(key.as_bytes())?.is_some_and(|there| there.value() == old);
                if there {
                    tokens.insert(key.as_bytes(), sealed.as_slice())?;
                }
                there
            };
            transaction.commit()?;
            Ok::<_, redb::Error>(there)
        })
        .await
    }

    async fn claim(&self, key: TokenKey, holder: Holder, seconds: u64) -> Result<bool, StoreError> {
        let now = Instant::now();
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, (_, until)| *until > now);
        if claims.contains_key(&key) {
            return Ok(false);
        }
        claims.insert(key, (holder, now + Duration::from_secs(seconds)));
        Ok(true)
    }

    async fn release(&self, key: TokenKey, holder: Holder) -> Result<(), StoreError> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.get(&key).is_some_and(|(other, _)| *other == holder) {
            claims.remove(&key);
        }
        Ok(())
    }

    async fn check_record(&self, offered: Vec<u8>, instead_of: Option<Vec<u8>>) -> Result<Vec<u8>, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            let there = {
                let mut table = transaction.open_table(CHECK)?;
                let there = table.get(())?.map(|there| there.value().to_vec());
                match there {
                    Some(there) if instead_of.as_ref() != Some(&there) => there,
                    Some(_) | None => {
                        table.insert((), offered.as_slice())?;
                        offered
                    }
                }
            };
            transaction.commit()?;
            Ok::<_, redb::Error>(there)
        })
        .await
    }

    async fn remove_token(&self, key: TokenKey, route: RouteKey, old: Vec<u8>) -> Result<bool, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            {
                let mut tokens = transaction.open_table(TOKENS)?;
                if tokens.get(key.as_bytes())?.is_none_or(|there| there.value() != old) {
                    return Ok(false);
                }
                tokens.remove(key.as_bytes())?;
            }
            {
                let mut routes = transaction.open_table(ROUTES)?;
                if routes.get(route.as_bytes())?.is_some_and(|pointed_at| pointed_at.value() == key.as_bytes()) {
                    routes.remove(route.as_bytes())?;
                }
            }
            transaction.commit()?;
            Ok::<_, redb::Error>(true)
        })
        .await
    }

    async fn registrations(&self, key: RegistrationsKey) -> Result<Option<Vec<u8>>, StoreError> {
        self.run(move |database| {
            let table = database.begin_read()?.open_table(REGISTRATIONS)?;
            Ok::<_, redb::Error>(table.get(key.as_bytes())?.map(|sealed| sealed.value().to_vec()))
        })
        .await
    }

    async fn replace_registrations(
        &self,
        key: RegistrationsKey,
        old: Option<Vec<u8>>,
        sealed: Vec<u8>,
    ) -> Result<bool, StoreError> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(REGISTRATIONS)?;
                if table.get(key.as_bytes())?.map(|there| there.value().to_vec()) != old {
                    return Ok(false);
                }
                table.insert(key.as_bytes(), sealed.as_slice())?;
            }
            transaction.commit()?;
            Ok::<_, redb::Error>(true)
        })
        .await
    }
}

/// Notes until when requests of a route may come again, and removes some of what is over by now.
fn note_again(
    transaction: &WriteTransaction,
    route: &RouteKey,
    until: UnixTime,
    now: UnixTime,
) -> Result<(), redb::Error> {
    let (mut again, mut expiry) = (transaction.open_table(AGAIN)?, transaction.open_table(AGAIN_EXPIRY)?);
    let mut over = Vec::new();
    for entry in expiry.range(..=(now.secs(), &[0xff; 32]))?.take(REMOVED_AT_ONCE) {
        let entry = entry?.0;
        let (end, of) = entry.value();
        over.push((end, *of));
    }
    for (end, of) in &over {
        expiry.remove((*end, of))?;
        again.remove(of)?;
    }
    if let Some(before) = again.insert(route.as_bytes(), until.secs())?.map(|before| before.value()) {
        expiry.remove((before, route.as_bytes()))?;
    }
    expiry.insert((until.secs(), route.as_bytes()), ())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

    use redb::ReadableTableMetadata;

    use super::{
        database::builder,
        flows::{BY_USER, EXPIRY, FLOWS},
        *,
    };
    use crate::store::{
        key_file::{self, KeysError},
        keys::UserKey,
    };

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const CONTEXT: Context = Context::from_bytes([1; 32]);
    const TOKEN: TokenKey = TokenKey::from_bytes([1; 32]);
    const ROUTE: RouteKey = RouteKey::from_bytes([2; 32]);
    const LIMITS: FlowLimits = FlowLimits { of_user: 1000, in_all: 1000 };

    fn flow(number: u16, expires_at: UnixTime) -> Flow {
        let mut id = [0; 32];
        id.iter_mut().zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
        Flow {
            id: FlowKey::from_bytes(id),
            context: CONTEXT,
            user: UserKey::from_bytes([2; 32]),
            expires_at,
            sealed: b"sealed".into(),
            tombstone: b"left".into(),
        }
    }

    /// How many rows the tables of flows have.
    async fn rows(store: &FileStore) -> [u64; 3] {
        let rows = store.run(|database| {
            let transaction = database.begin_read()?;
            Ok::<_, redb::Error>([
                transaction.open_table(FLOWS)?.len()?,
                transaction.open_table(EXPIRY)?.len()?,
                transaction.open_table(BY_USER)?.len()?,
            ])
        });
        rows.await.expect("rows")
    }

    #[tokio::test]
    async fn nothing_is_left_of_expired_flows_and_no_call_removes_many() {
        let dir = tempfile::tempdir().expect("a folder");
        let (store, ..) = FileStore::open(&dir.path().join("store.redb"), None).await.expect("a store");
        for number in 0..250 {
            store.add_flow(flow(number, NOW + 600), LIMITS, NOW).await.expect("added");
        }
        store.take_flow(flow(0, NOW).id, CONTEXT, NOW).await.expect("taken");
        assert_eq!(rows(&store).await, [250, 250, 250]);
        store.take_flow(flow(1, NOW).id, CONTEXT, NOW + 600).await.expect("unknown");
        assert_eq!(rows(&store).await, [150, 150, 150], "the one that was taken goes, too");
        // Those that expired do not count, removed or not.
        store.add_flow(flow(300, NOW + 1200), FlowLimits { of_user: 1, in_all: 1 }, NOW + 600).await.expect("added");
        assert_eq!(rows(&store).await, [1, 1, 1]);
        store.take_flow(flow(1, NOW).id, CONTEXT, NOW + 1200).await.expect("unknown");
        assert_eq!(rows(&store).await, [0, 0, 0]);
    }

    #[tokio::test]
    async fn nothing_is_left_of_what_was_expected_again_and_no_call_removes_many() {
        let dir = tempfile::tempdir().expect("a folder");
        let (store, ..) = FileStore::open(&dir.path().join("store.redb"), None).await.expect("a store");
        let route = |number: u8| RouteKey::from_bytes([number; 32]);
        let rows = async || {
            let rows = store.run(|database| {
                let transaction = database.begin_read()?;
                Ok::<_, redb::Error>([
                    transaction.open_table(AGAIN)?.len()?,
                    transaction.open_table(AGAIN_EXPIRY)?.len()?,
                ])
            });
            rows.await.expect("rows")
        };
        for number in 0..150 {
            store.put_token(TokenKey::from_bytes([number; 32]), route(number), b"sealed".into()).await.expect("kept");
            assert!(store.expect_again(route(number), NOW + 660, NOW).await.expect("a store"));
        }
        assert_eq!(rows().await, [150, 150]);
        assert!(store.expect_again(route(0), NOW + 700, NOW + 40).await.expect("a store"));
        assert_eq!(rows().await, [150, 150], "one of a route");
        assert!(!store.expect_again(route(200), NOW + 2000, NOW + 1000).await.expect("a store"));
        assert_eq!(rows().await, [150, 150], "what is refused changes nothing");
        assert!(store.expect_again(route(1), NOW + 1360, NOW + 700).await.expect("a store"));
        assert_eq!(rows().await, [51, 51]);
        assert!(store.expect_again(route(1), NOW + 1361, NOW + 701).await.expect("a store"));
        assert_eq!(rows().await, [1, 1]);
    }

    /// A version before this one made no table of these.
    #[tokio::test]
    async fn a_store_of_an_earlier_version_gets_what_it_lacks() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store.redb");
        let (store, ..) = FileStore::open(&path, None).await.expect("a store");
        store.put_token(TOKEN, ROUTE, b"sealed".into()).await.expect("kept");
        drop(store);
        let database = builder().open(&path).expect("a database");
        let transaction = database.begin_write().expect("a transaction");
        transaction.delete_table(AGAIN).expect("it goes");
        transaction.delete_table(AGAIN_EXPIRY).expect("it goes");
        transaction.commit().expect("kept");
        drop(database);
        let (store, ..) = FileStore::open(&path, None).await.expect("a store");
        let found = async || store.token(ROUTE).await.expect("a store").map(|found| found.again);
        assert_eq!(found().await, Some(None));
        assert!(store.expect_again(ROUTE, NOW + 660, NOW).await.expect("a store"));
        assert_eq!(found().await, Some(Some(NOW + 660)));
    }

    #[tokio::test]
    async fn the_files_are_their_owners() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store.redb");
        FileStore::open(&path, None).await.expect("a store");
        for path in [&path, &key_file::beside(&path)] {
            let mode = fs::metadata(path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{}", path.display());
        }
    }

    #[tokio::test]
    async fn a_store_without_its_keys_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store.redb");
        let beside = key_file::beside(&path);
        let (_, sealer, _) = FileStore::open(&path, None).await.expect("a store");
        let sealed = sealer.seal("test", &[], b"secret").expect("sealed");
        let (_, sealer, _) = FileStore::open(&path, None).await.expect("the store again");
        assert_eq!(sealer.open("test", &[], &sealed).expect("the same keys").plaintext.as_slice(), b"secret");

        let kept = fs::read(&beside).expect("the keys");
        fs::remove_file(&beside).expect("they go");
        let error = FileStore::open(&path, None).await.err().expect("lost").to_string();
        assert!(error.contains(beside.to_str().expect("text")) && error.contains("is missing"), "{error}");
        assert!(!beside.exists(), "no fresh keys take their place");

        key_file::create(&beside).expect("other keys");
        let error = FileStore::open(&path, None).await.err().expect("others").to_string();
        assert!(error.contains(beside.to_str().expect("text")) && error.contains("none of the keys"), "{error}");

        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, kept).expect("the keys again");
        FileStore::open(&path, Some(&elsewhere)).await.expect("where they are does not matter");
    }

    #[tokio::test]
    async fn keys_that_are_none_leave_no_store() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, given) = (dir.path().join("store.redb"), dir.path().join("given"));
        let error = FileStore::open(&path, Some(&given)).await.err().expect("no keys");
        assert!(matches!(error, OpenError::Keys { reason: KeysError::Unreadable(_), .. }), "{error}");
        fs::write(&given, "no-key").expect("a file");
        let error = FileStore::open(&path, Some(&given)).await.err().expect("no keys").to_string();
        assert!(error.contains(given.to_str().expect("text")) && !error.contains("no-key"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_no_store_or_in_use_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store.redb");
        let error = |path: PathBuf| async move {
            let error = FileStore::open(&path, None).await.err().expect("no store").to_string();
            assert!(error.contains(path.to_str().expect("text")), "{error}");
            error
        };
        let _open = FileStore::open(&path, None).await.expect("a store");
        assert!(error(path).await.contains("another process has it open"));
        assert!(error(dir.path().join("missing/store.redb")).await.contains("No such file"));
        let other = dir.path().join("text");
        fs::write(&other, "not a store, but longer than the header of one ".repeat(100)).expect("a file");
        error(other).await;
        // Another program's, or one that somebody took the check record from.
        let foreign = dir.path().join("foreign");
        let database = Database::create(&foreign).expect("a database");
        let transaction = database.begin_write().expect("a transaction");
        transaction.open_table(TOKENS).expect("a table").insert(&[0; 32], &b"x"[..]).expect("a row");
        transaction.commit().expect("kept");
        drop(database);
        error(foreign.clone()).await;
        key_file::create(&key_file::beside(&foreign)).expect("keys");
        error(foreign).await;
    }

    #[tokio::test]
    async fn the_file_is_opened_anew_after_the_disk_failed() {
        let dir = tempfile::tempdir().expect("a folder");
        let (store, ..) = FileStore::open(&dir.path().join("store.redb"), None).await.expect("a store");
        store.put_token(TOKEN, ROUTE, b"sealed".into()).await.expect("kept");
        let error = store.run(|_| Err::<(), _>(redb::Error::PreviousIo)).await.expect_err("a failure").to_string();
        assert!(error.contains("store.redb: Previous I/O error"), "{error}");
        assert!(store.file.is_closed());
        let found = store.token(ROUTE).await.expect("a store");
        assert_eq!(found.map(|found| found.kept), Some((TOKEN, b"sealed".into())));
    }
}
