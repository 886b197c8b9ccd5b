//! A TLS configuration that follows its files.

use std::{
    borrow::Cow,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::time::sleep;
use zeroize::Zeroizing;

use super::{
    expiry::{Said, Validity},
    pem,
};
use crate::model::clock::UnixTime;
use crate::telemetry::{
    exposure,
    metrics::Metrics,
    reload::{Watched, fingerprint, watch},
};

/// How often it is looked whether a certificate ends soon.
const LOOK: Duration = Duration::from_secs(10);

/// The files of one side of a connection: whom it trusts and, where it has one, its own identity.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// What metrics and log lines call them.
    pub name: &'static str,
    pub authority: PemFile,
    /// The certificate chain, and its private key.
    pub identity: Option<[PemFile; 2]>,
}

/// A PEM file, and the flag that names it.
#[derive(Clone, Debug)]
pub struct PemFile {
    flag: Cow<'static, str>,
    path: PathBuf,
}

/// What the files hold.
pub struct Loaded {
    pub authorities: RootCertStore,
    pub identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// A configuration made of files, and made again when one of them changes. Connections that are open keep theirs.
pub struct Following<C> {
    files: TlsFiles,
    seen: [u8; 32],
    build: Arc<dyn Fn(Loaded) -> anyhow::Result<C> + Send + Sync>,
    current: Arc<ArcSwap<C>>,
    /// When the certificates of the newest good files end.
    validities: Arc<ArcSwap<Validities>>,
}

/// Of the certificates that are one's own, and of those that are trusted.
type Validities = Vec<(&'static str, Validity)>;

impl<C> Clone for Following<C> {
    fn clone(&self) -> Self {
        let Self { files, seen, build, current, validities } = self;
        Self {
            files: files.clone(),
            seen: *seen,
            build: Arc::clone(build),
            current: Arc::clone(current),
            validities: Arc::clone(validities),
        }
    }
}

impl<C: Send + Sync> Following<C> {
    /// # Errors
    /// Where a file cannot be read or holds something else; the error names the flag and the file.
    pub fn new(
        files: TlsFiles,
        build: impl Fn(Loaded) -> anyhow::Result<C> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let contents: Vec<Zeroizing<String>> = files.all().map(PemFile::read).collect::<Result<_, _>>()?;
        let contents: Vec<&str> = contents.iter().map(|content| content.as_str()).collect();
        let config = build(files.load(&contents)?)?;
        Ok(Self {
            seen: fingerprint(&contents),
            validities: Arc::new(ArcSwap::from_pointee(files.validities(&contents))),
            files,
            build: Arc::new(build),
            current: Arc::new(ArcSwap::from_pointee(config)),
        })
    }

    /// The one of the newest good files.
    pub fn current(&self) -> Arc<C> {
        self.current.load_full()
    }

    /// Says when the certificates end, at once and whenever they are nearer to it, and follows the files for ever.
    pub fn watch(self, metrics: Arc<Metrics>) -> impl Future<Output = anyhow::Result<()>> + Send {
        let Self { files, seen, build, current, validities } = self;
        let mut said = Said::default();
        said.note(files.name, &validities.load(), UnixTime::now(), &metrics);
        let ends = say_when_they_end(said, files.name, Arc::clone(&validities), Arc::clone(&metrics));
        let paths = files.all().map(|file| file.path.clone()).collect();
        let reloads = watch(Watched { name: files.name, paths, seen }, metrics, move |contents| {
            if let Some([_, key]) = &files.identity {
                exposure::warn(&key.path);
            }
            current.store(Arc::new(build(files.load(contents)?)?));
            validities.store(Arc::new(files.validities(contents)));
            Ok(())
        });
        async {
            tokio::select! {
                ended = reloads => ended,
                ended = ends => match ended {},
            }
        }
    }
}

async fn say_when_they_end(
    mut said: Said,
    file: &'static str,
    validities: Arc<ArcSwap<Validities>>,
    metrics: Arc<Metrics>,
) -> Infallible {
    loop {
        sleep(LOOK).await;
        said.note(file, &validities.load(), UnixTime::now(), &metrics);
    }
}

impl TlsFiles {
    fn all(&self) -> impl Iterator<Item = &PemFile> {
        std::iter::once(&self.authority).chain(self.identity.iter().flatten())
    }

    /// `contents` are those of [`Self::all`].
    fn validities(&self, contents: &[&str]) -> Validities {
        let certificates = contents.iter().take(2).zip(["authority", "certificate"]);
        certificates
            .filter_map(|(text, of)| Some((of, Validity::first_to_end(&pem::certificates(text).ok()?)?)))
            .collect()
    }

    /// `contents` are those of [`Self::all`].
    fn load(&self, contents: &[&str]) -> anyhow::Result<Loaded> {
        let mut files = self.all().zip(contents);
        let mut authorities = RootCertStore::empty();
        if let Some((file, text)) = files.next() {
            pem::add_authorities(&mut authorities, text).with_context(|| file.named())?;
        }
        let identity = match (files.next(), files.next()) {
            (Some((cert, chain)), Some((key, text))) => Some((
                pem::certificates(chain).with_context(|| cert.named())?,
                pem::private_key(text).with_context(|| key.named())?,
            )),
            _ => None,
        };
        Ok(Loaded { authorities, identity })
    }
}

impl PemFile {
    /// `flag` is its name without the dashes.
    pub fn new(flag: impl Into<Cow<'static, str>>, path: &Path) -> Self {
        Self { flag: flag.into(), path: path.to_owned() }
    }

    fn read(&self) -> anyhow::Result<Zeroizing<String>> {
        std::fs::read_to_string(&self.path).map(Zeroizing::new).with_context(|| self.named())
    }

    fn named(&self) -> String {
        format!("--{} {}", self.flag, self.path.display())
    }
}
