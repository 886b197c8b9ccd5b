{{- define "envoy-cimd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for "-choreographer" behind it. */}}
{{- define "envoy-cimd.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 49 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 49 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 49 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The name of what belongs to a component: (dict "root" $ "component" "serve"). */}}
{{- define "envoy-cimd.named" -}}
{{- include "envoy-cimd.fullname" .root }}{{ if ne .component "serve" }}-{{ .component }}{{ end }}
{{- end }}

{{/* What a component is called in the cluster. */}}
{{- define "envoy-cimd.host" -}}
{{- printf "%s.%s.svc.%s" (include "envoy-cimd.named" .) .root.Release.Namespace .root.Values.clusterDomain }}
{{- end }}

{{- define "envoy-cimd.selectorLabels" -}}
app.kubernetes.io/name: {{ include "envoy-cimd.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "envoy-cimd.labels" -}}
{{ include "envoy-cimd.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "envoy-cimd.serviceAccountName" -}}
{{- $account := ternary .root.Values.serviceAccount .root.Values.choreographer.serviceAccount (eq .component "serve") }}
{{- if or $account.name .root.Values.serviceAccount.create }}
{{- default (include "envoy-cimd.named" .) $account.name }}
{{- else }}
{{- "default" }}
{{- end }}
{{- end }}

{{- define "envoy-cimd.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{/* The components that have pods of this chart, with how many. */}}
{{- define "envoy-cimd.components" -}}
{{- $components := dict }}
{{- if ne .Values.mode "envoy-gateway" }}
{{- $_ := set $components "serve" .Values.replicas }}
{{- end }}
{{- if .Values.choreographer.enabled }}
{{- $_ := set $components "choreographer" .Values.choreographer.replicas }}
{{- end }}
{{- toJson $components }}
{{- end }}

{{/* Which component has the exchange, its store and its keys. */}}
{{- define "envoy-cimd.exchange" -}}
{{- ternary "choreographer" "serve" .Values.choreographer.enabled }}
{{- end }}

{{/* What a component's pods are to have: the choreographer's own values before those of all. */}}
{{- define "envoy-cimd.pod" -}}
{{- $own := ternary dict .root.Values.choreographer (eq .component "serve") }}
{{- $pod := dict }}
{{- range $key := list "resources" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "podAnnotations"
  "podLabels" "priorityClassName" "extraArgs" "extraEnv" "extraVolumes" "extraVolumeMounts" }}
{{- range $of := list $.root.Values $own }}
{{- if hasKey $of $key }}
{{- $_ := set $pod $key (get $of $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $pod }}
{{- end }}

{{/* How long a pod of a component takes to stop at most, in seconds. */}}
{{- define "envoy-cimd.stop" -}}
{{- $config := .root.Values.config }}
{{- $withEnvoy := and (eq .component "serve") (eq .root.Values.mode "sidecar") }}
{{- $envoy := ternary .root.Values.envoy.drainSeconds 0 $withEnvoy }}
{{- add (int $config.drain_delay) (int $config.drain_timeout) (int $envoy) }}
{{- end }}

{{- define "envoy-cimd.grace" -}}
{{- $derived := add (include "envoy-cimd.stop" . | int) 20 }}
{{- default $derived .root.Values.terminationGracePeriodSeconds }}
{{- end }}
