//! A store in one file (redb), for one process.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition, TableError,
    WriteTransaction,
};
use subtle::ConstantTimeEq;

use super::{
    backend::{Flow, FlowLimits, Found, Holder, Kept, Store, Taken},
    error::{OpenError, StoreError, blocking},
    key_file::{self, KeysError},
    keys::{Context, FlowKey, RegistrationsKey, RouteKey, TokenKey, UserKey},
    whole_file,
};
use crate::model::{clock::UnixTime, seal::Sealer};

/// A flow by its id: context, user, expiry, sequence, what is sealed (none once it is taken), tombstone.
const FLOWS: TableDefinition<&[u8; 32], StoredFlow> = TableDefinition::new("flows-v1");
type StoredFlow<'a> = (&'a [u8; 32], &'a [u8; 32], u64, u64, Option<&'a [u8]>, &'a [u8]);
/// Every flow, by expiry and id.
const EXPIRY: TableDefinition<(u64, &[u8; 32]), ()> = TableDefinition::new("expiry-v1");
/// Every flow, by user, expiry, sequence and id.
const BY_USER: TableDefinition<ByUser, ()> = TableDefinition::new("by-user-v1");
type ByUser<'a> = (&'a [u8; 32], u64, u64, &'a [u8; 32]);
const TOKENS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("tokens-v1");
/// The key of a route's token.
const ROUTES: TableDefinition<&[u8; 32], &[u8; 32]> = TableDefinition::new("routes-v1");
/// Until when requests of a route may come again.
const AGAIN: TableDefinition<&[u8; 32], u64> = TableDefinition::new("again-v1");
/// The same, by that time.
const AGAIN_EXPIRY: TableDefinition<(u64, &[u8; 32]), ()> = TableDefinition::new("again-expiry-v1");
/// The clients that were registered for a route.
const REGISTRATIONS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("registrations-v1");
const CHECK: TableDefinition<(), &[u8]> = TableDefinition::new("key-check-v1");
/// How many flows were ever added, which tells the older of two apart.
const SEQUENCE: TableDefinition<(), u64> = TableDefinition::new("sequence-v1");

/// How many expired flows, or notes, one call removes, at most: more than it adds, so that they become fewer.
const REMOVED_AT_ONCE: usize = 100;
/// redb would take a gigabyte.
const CACHE_BYTES: usize = 32 << 20;

/// The store in a file. Its work is done on threads that may block.
pub struct FileStore(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// None after a failure of the disk: redb then does nothing more until the file is opened anew.
    database: RwLock<Option<Database>>,
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
        blocking(move || open(&path, encryption_keys.as_deref())).await?
    }

    async fn run<T, E>(&self, step: impl FnOnce(&Database) -> Result<T, E> + Send + 'static) -> Result<T, StoreError>
    where
        T: Send + 'static,
        E: Into<Failure>,
    {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.run(step)).await?
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
        let mut claims = self.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, (_, until)| *until > now);
        if claims.contains_key(&key) {
            return Ok(false);
        }
        claims.insert(key, (holder, now + Duration::from_secs(seconds)));
        Ok(true)
    }

    async fn release(&self, key: TokenKey, holder: Holder) -> Result<(), StoreError> {
        let mut claims = self.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Why a step was not done.
enum Failure {
    Redb(redb::Error),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl Inner {
    fn run<T, E: Into<Failure>>(&self, step: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, StoreError> {
        let failure = loop {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(database) = database.as_ref() {
                match step(database) {
                    Ok(done) => return Ok(done),
                    Err(error) => break error.into(),
                }
            }
            drop(database);
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            if database.is_none() {
                *database = Some(builder().open(&self.path).map_err(|error| failed(&self.path, &error.into()))?);
            }
        };
        match failure {
            Failure::Store(error) => Err(error),
            Failure::Redb(error) => {
                if needs_reopening(&error) {
                    *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(failed(&self.path, &error))
            }
        }
    }
}

/// The tables of flows, within one transaction.
struct FlowTables<'t> {
    flows: Table<'t, &'static [u8; 32], StoredFlow<'static>>,
    expiry: Table<'t, (u64, &'static [u8; 32]), ()>,
    by_user: Table<'t, ByUser<'static>, ()>,
    sequence: Table<'t, (), u64>,
}

/// What of a flow is needed to find it in the other tables.
struct Indexed {
    user: [u8; 32],
    expires_at: u64,
    sequence: u64,
}

impl<'t> FlowTables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            flows: transaction.open_table(FLOWS)?,
            expiry: transaction.open_table(EXPIRY)?,
            by_user: transaction.open_table(BY_USER)?,
            sequence: transaction.open_table(SEQUENCE)?,
        })
    }

    fn add(mut self, flow: &Flow, limits: FlowLimits, now: UnixTime) -> Result<(), Failure> {
        let Flow { id, context, user, expires_at, sealed, tombstone } = flow;
        let expires_at = *expires_at;
        self.remove_expired(now, REMOVED_AT_ONCE)?;
        if let Some(other) = self.indexed(id)? {
            if other.expires_at > now.secs() {
                return Err(Failure::Store(StoreError::Failed("there is a flow of this id".to_owned())));
            }
            self.remove(id)?;
        }
        if expires_at <= now {
            return Ok(());
        }

        let of_user = self.flows_of(user, now)?;
        let surplus = (of_user.len() + 1).saturating_sub(limits.of_user.max(1));
        let oldest = of_user.get(..surplus).unwrap_or_default();
        for id in oldest {
            self.remove(id)?;
        }
        // More may have expired than was removed above, and those do not count.
        while self.by_user.len()? >= limits.in_all as u64 {
            if self.remove_expired(now, 1)? == 0 {
                return Err(Failure::Store(StoreError::Full));
            }
        }

        let sequence = self.sequence.get(())?.map_or(0, |last| last.value()).wrapping_add(1);
        self.sequence.insert((), sequence)?;
        let (id, context, user, expires_at) = (id.as_bytes(), context.as_bytes(), user.as_bytes(), expires_at.secs());
        self.flows.insert(id, (context, user, expires_at, sequence, Some(sealed.as_slice()), tombstone.as_slice()))?;
        self.expiry.insert((expires_at, id), ())?;
        self.by_user.insert((user, expires_at, sequence, id), ())?;
        Ok(())
    }

    /// What came of it, and whether there is anything to commit.
    fn take(mut self, id: &FlowKey, context: &Context, now: UnixTime) -> Result<(Taken, bool), Failure> {
        let removed = self.remove_expired(now, REMOVED_AT_ONCE)? > 0;
        let (indexed, sealed, tombstone) = {
            let Some(stored) = self.flows.get(id.as_bytes())? else {
                return Ok((Taken::Unknown, removed));
            };
            let (stored_context, user, expires_at, sequence, sealed, tombstone) = stored.value();
            if expires_at <= now.secs() {
                return Ok((Taken::Unknown, removed));
            }
            if !bool::from(stored_context.ct_eq(context.as_bytes())) {
                return Ok((Taken::WrongContext, removed));
            }
            let Some(sealed) = sealed else {
                return Ok((Taken::Used(tombstone.to_vec()), removed));
            };
            (Indexed { user: *user, expires_at, sequence }, sealed.to_vec(), tombstone.to_vec())
        };
        let Indexed { user, expires_at, sequence } = indexed;
        self.flows
            .insert(id.as_bytes(), (context.as_bytes(), &user, expires_at, sequence, None, tombstone.as_slice()))?;
        Ok((Taken::Flow(sealed), true))
    }

    /// Removes the first `at_most` of the expired flows, and says how many there were of them.
    fn remove_expired(&mut self, now: UnixTime, at_most: usize) -> Result<usize, redb::Error> {
        let mut expired = Vec::new();
        for entry in self.expiry.range(..=(now.secs(), &[0xff; 32]))?.take(at_most) {
            expired.push(FlowKey::from_bytes(*entry?.0.value().1));
        }
        for id in &expired {
            self.remove(id)?;
        }
        Ok(expired.len())
    }

    /// The flows of a user, the oldest first.
    fn flows_of(&self, user: &UserKey, now: UnixTime) -> Result<Vec<FlowKey>, redb::Error> {
        let user = user.as_bytes();
        let first = (user, now.secs().saturating_add(1), 0, &[0; 32]);
        let last = (user, u64::MAX, u64::MAX, &[0xff; 32]);
        let mut ids = Vec::new();
        for entry in self.by_user.range(first..=last)? {
            ids.push(FlowKey::from_bytes(*entry?.0.value().3));
        }
        Ok(ids)
    }

    fn indexed(&self, id: &FlowKey) -> Result<Option<Indexed>, redb::Error> {
        Ok(self.flows.get(id.as_bytes())?.map(|stored| {
            let (_, user, expires_at, sequence, ..) = stored.value();
            Indexed { user: *user, expires_at, sequence }
        }))
    }

    fn remove(&mut self, id: &FlowKey) -> Result<(), redb::Error> {
        if let Some(Indexed { user, expires_at, sequence }) = self.indexed(id)? {
            let id = id.as_bytes();
            self.flows.remove(id)?;
            self.expiry.remove((expires_at, id))?;
            self.by_user.remove((&user, expires_at, sequence, id))?;
        }
        Ok(())
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

fn open(path: &Path, encryption_keys: Option<&Path>) -> Result<(FileStore, Sealer, Vec<u8>), OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |reason| OpenError::Keys { path, reason }
    };
    // Keys that are no keys shall not leave an empty store behind.
    let given = encryption_keys.map(|path| key_file::read(path).map_err(at(path))).transpose()?;
    let database = open_database(path)?;
    let failed = |error: redb::Error| failed(path, &error);
    let content = content(&database).map_err(failed)?;
    let beside = key_file::beside(path);
    let keys_path = encryption_keys.unwrap_or(&beside);
    // Nobody else makes the file meanwhile: whoever would has to open the store first.
    let sealer = match (given, keys_path.try_exists(), &content) {
        (Some(sealer), ..) => sealer,
        (None, Ok(false), Content::Nothing) => key_file::create(keys_path).map_err(at(keys_path))?,
        (None, Ok(false), _) => return Err(at(keys_path)(KeysError::Lost)),
        (None, ..) => key_file::read(keys_path).map_err(at(keys_path))?,
    };
    let (newer, record) = match content {
        Content::Nothing => (
            key_file::check_record(&sealer).map(Some).map_err(|error| StoreError::Failed(error.to_string()))?,
            Vec::new(),
        ),
        Content::Checked(record) => (key_file::check(&sealer, &record).map_err(at(keys_path))?, record),
        Content::Unchecked => return Err(at(keys_path)(KeysError::Wrong)),
    };
    set_up(&database, newer.as_deref()).map_err(failed)?;
    Ok((
        FileStore(Arc::new(Inner {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            claims: Mutex::default(),
        })),
        sealer,
        newer.unwrap_or(record),
    ))
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    if !path.exists() {
        make(path).map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?;
    }
    builder().create(path).map_err(|error| failed(path, &error.into()))
}

/// Makes the file whole: one that a death left half made would never open again.
fn make(path: &Path) -> Result<(), redb::Error> {
    let folder = whole_file::folder(path)?;
    // Whoever else makes it is waited for.
    folder.lock()?;
    if path.exists() {
        return Ok(());
    }
    // redb itself would make the file as readable as the umask allows.
    whole_file::make(path, |_, draft| {
        drop(builder().create(draft)?);
        Ok(())
    })
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

enum Content {
    Nothing,
    /// The record that tells whether the keys are right.
    Checked(Vec<u8>),
    /// Something, but no such record: it is not ours, or not whole.
    Unchecked,
}

fn content(database: &Database) -> Result<Content, redb::Error> {
    let transaction = database.begin_read()?;
    if transaction.list_tables()?.next().is_none() {
        return Ok(Content::Nothing);
    }
    match transaction.open_table(CHECK) {
        Ok(table) => Ok(table.get(())?.map_or(Content::Unchecked, |record| Content::Checked(record.value().to_vec()))),
        Err(TableError::TableDoesNotExist(_)) => Ok(Content::Unchecked),
        Err(error) => Err(error.into()),
    }
}

/// Stores the check record, where it is another, and makes all tables that an earlier version did not: from here on they
/// are there.
fn set_up(database: &Database, record: Option<&[u8]>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    if let Some(record) = record {
        transaction.open_table(CHECK)?.insert((), record)?;
    }
    FlowTables::open(&transaction)?;
    transaction.open_table(TOKENS)?;
    transaction.open_table(ROUTES)?;
    transaction.open_table(AGAIN)?;
    transaction.open_table(AGAIN_EXPIRY)?;
    transaction.open_table(REGISTRATIONS)?;
    Ok(transaction.commit()?)
}

fn needs_reopening(error: &redb::Error) -> bool {
    use redb::Error::{Backend, Corrupted, DatabaseClosed, Io, LockPoisoned, PreviousIo};
    matches!(error, Io(_) | Backend(_) | PreviousIo | Corrupted(_) | DatabaseClosed | LockPoisoned(_))
}

fn failed(path: &Path, error: &redb::Error) -> StoreError {
    let path = path.display();
    StoreError::Failed(match error {
        redb::Error::DatabaseAlreadyOpen => {
            format!("{path}: another process has it open; processes that share a store need one in Redis")
        }
        error => format!("{path}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

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
        assert!(store.0.database.read().expect("no panic").is_none());
        let found = store.token(ROUTE).await.expect("a store");
        assert_eq!(found.map(|found| found.kept), Some((TOKEN, b"sealed".into())));
    }
}
