//! Why a reconcile stopped. It runs again after a pause that grows with each failure of the same object.

/// Why a reconcile stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("cannot {action}: {reason}")]
    Api {
        action: String,
        /// What the API server said, or what kept the call from it.
        reason: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of that name is there and is not ours.
    #[error(
        "{kind} {name} is there already and does not belong to this RocketCluster: remove it, or give the RocketCluster another name"
    )]
    Foreign { kind: String, name: String },
}

impl Error {
    /// Reason of a condition, kind of a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Api { .. } => "ApiCallFailed",
            Self::Foreign { .. } => "ObjectNotOurs",
        }
    }
}

/// Says what was being done when a call failed.
pub(crate) trait During<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, kube::Error> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Api {
            action: action(),
            reason: match &source {
                kube::Error::Api(status) => status.message.clone(),
                other => other.to_string(),
            },
            source: Box::new(source),
        })
    }
}

/// Whether the API server said that there is no such object.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API server said that the object is not what the call assumed.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the API server said that the object would not be valid.
pub(crate) fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}
