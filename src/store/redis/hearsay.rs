//! What others said, which is believed until it is doubted.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::RedisResult;
use tokio::{sync::Mutex, time::Instant};

/// How long an answer stands, whoever doubts it: where servers are down, everybody does.
const STANDS: Duration = Duration::from_millis(100);

pub struct Hearsay<T> {
    doubted: AtomicBool,
    said: Mutex<Option<(T, Instant)>>,
}

impl<T> Default for Hearsay<T> {
    fn default() -> Self {
        Self { doubted: AtomicBool::default(), said: Mutex::new(None) }
    }
}

impl<T: Clone> Hearsay<T> {
    /// Has others asked again.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// What was said, or what they say now where that is doubted. Others wait meanwhile.
    ///
    /// # Errors
    /// Those of `ask`.
    pub async fn or_ask(&self, ask: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let mut said = self.said.lock().await;
        if let Some((said, when)) = &*said
            && (when.elapsed() < STANDS || !self.doubted.load(Ordering::Relaxed))
        {
            return Ok(said.clone());
        }
        // Before the question: who doubts it from now on may know more.
        self.doubted.store(false, Ordering::Relaxed);
        let answer = ask.await.inspect_err(|_| self.doubt())?;
        *said = Some((answer.clone(), Instant::now()));
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_for_again_where_it_is_doubted() {
        let hearsay = Hearsay::default();
        let heard = async |says| hearsay.or_ask(async { Ok(says) }).await.expect("an answer");
        assert_eq!((heard(1).await, heard(2).await), (1, 1));
        hearsay.doubt();
        assert_eq!(heard(3).await, 1, "it was said just now");
        tokio::time::advance(STANDS).await;
        assert_eq!((heard(4).await, heard(5).await), (4, 4));
        tokio::time::advance(STANDS).await;
        assert_eq!(heard(6).await, 4, "nobody doubts it");
        hearsay.doubt();
        let failed = hearsay.or_ask(async { Err((redis::ErrorKind::Io, "nobody answers").into()) }).await;
        assert!(failed.is_err());
        assert_eq!(heard(7).await, 7, "what failed is asked again");
    }
}
