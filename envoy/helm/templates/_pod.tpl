{{/* envoy-cimd itself, as a container: root, component, and adminPort, what its admin port is called. */}}
{{- define "envoy-cimd.container" -}}
{{- $values := .root.Values }}
{{- $pod := include "envoy-cimd.pod" . | fromJson }}
{{- $isServe := eq .component "serve" }}
{{- $hasExchange := eq .component (include "envoy-cimd.exchange" .root) -}}
name: envoy-cimd
image: {{ include "envoy-cimd.image" (dict "root" .root "image" $values.image) | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
args:
- {{ .component }}
- --config
- /etc/envoy-cimd/config/envoy-cimd.yaml
{{- range $pod.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- $redis := and $hasExchange (eq $values.store.type "redis") }}
{{- if or $redis $pod.extraEnv }}
env:
{{- if $redis }}
- name: ENVOY_CIMD_STORE
  valueFrom:
    secretKeyRef: {name: {{ $values.store.existingSecret }}, key: {{ $values.store.key }}}
{{- end }}
{{- with $pod.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
ports:
{{- if and $isServe (eq $values.mode "service") }}
- {name: grpc, containerPort: 9001}
{{- else if not $isServe }}
- {name: grpc, containerPort: 9003}
{{- end }}
- {name: {{ .adminPort }}, containerPort: 9002}
{{- if or (not $isServe) (and $hasExchange $values.tokens.enabled) }}
- {name: tokens, containerPort: 9005}
{{- end }}
startupProbe:
  httpGet: {path: /readyz, port: {{ .adminPort }}}
  {{- toYaml $values.startupProbe | nindent 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: {{ .adminPort }}}
  {{- toYaml $values.readinessProbe | nindent 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: {{ .adminPort }}}
  {{- toYaml $values.livenessProbe | nindent 2 }}
resources:
  {{- toYaml $pod.resources | nindent 2 }}
securityContext:
  {{- toYaml (merge (dict) $values.securityContext .securityContext) | nindent 2 }}
volumeMounts:
# Folders, since a file that is mounted by subPath is never updated.
- {name: envoy-cimd-config, mountPath: /etc/envoy-cimd/config, readOnly: true}
{{- if $isServe }}
- {name: envoy-cimd-state-keys, mountPath: /etc/envoy-cimd/state-keys, readOnly: true}
{{- if ne $values.mode "service" }}
- {name: envoy-cimd-socket, mountPath: /run/envoy-cimd}
{{- end }}
{{- end }}
{{- if or (not $isServe) (include "envoy-cimd.serveHasTls" .root) }}
- {name: envoy-cimd-tls, mountPath: /etc/envoy-cimd/tls, readOnly: true}
{{- end }}
{{- if $hasExchange }}
- {name: envoy-cimd-encryption-keys, mountPath: /etc/envoy-cimd/encryption-keys, readOnly: true}
{{- if include "envoy-cimd.extraCa" .root }}
- {name: envoy-cimd-extra-ca, mountPath: /etc/envoy-cimd/extra-ca, readOnly: true}
{{- end }}
{{- range include "envoy-cimd.clientSecrets" .root | fromJsonArray }}
- {name: {{ include "envoy-cimd.clientVolume" . }}, mountPath: /etc/envoy-cimd/clients/{{ . }}, readOnly: true}
{{- end }}
{{- if eq $values.store.type "file" }}
- {name: envoy-cimd-state, mountPath: /var/lib/envoy-cimd}
{{- end }}
{{- end }}
{{- with $pod.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The volumes of that container. */}}
{{- define "envoy-cimd.volumes" -}}
{{- $values := .root.Values }}
{{- $isServe := eq .component "serve" -}}
- name: envoy-cimd-config
  configMap: {name: {{ include "envoy-cimd.named" . }}}
{{- if $isServe }}
- name: envoy-cimd-state-keys
  {{- include "envoy-cimd.oneKey" (dict "of" $values.stateKeys "path" "state.keys") | nindent 2 }}
{{- if ne $values.mode "service" }}
- name: envoy-cimd-socket
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- end }}
{{- if or (not $isServe) (include "envoy-cimd.serveHasTls" .root) }}
- name: envoy-cimd-tls
  {{- $tls := ternary $values.tls $values.choreographer.tls $isServe }}
  secret: {secretName: {{ $tls.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- if eq .component (include "envoy-cimd.exchange" .root) }}
- name: envoy-cimd-encryption-keys
  {{- include "envoy-cimd.oneKey" (dict "of" $values.encryptionKeys "path" "encryption.keys") | nindent 2 }}
{{- if include "envoy-cimd.extraCa" .root }}
- name: envoy-cimd-extra-ca
  {{- include "envoy-cimd.oneKey" (dict "of" $values.extraCa "path" "ca.crt") | nindent 2 }}
{{- end }}
{{- range include "envoy-cimd.clientSecrets" .root | fromJsonArray }}
- name: {{ include "envoy-cimd.clientVolume" . }}
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if eq $values.store.type "file" }}
- name: envoy-cimd-state
  {{- $claim := default (include "envoy-cimd.fullname" .root) $values.store.file.existingClaim }}
  persistentVolumeClaim: {claimName: {{ $claim }}}
{{- end }}
{{- end }}
{{- with (include "envoy-cimd.pod" . | fromJson).extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* One key of a Secret or ConfigMap, and nothing else of it. */}}
{{- define "envoy-cimd.oneKey" -}}
{{- if .of.existingSecret -}}
secret: {secretName: {{ .of.existingSecret }}, defaultMode: 0440, items: [{key: {{ .of.key }}, path: {{ .path }}}]}
{{- else -}}
configMap: {name: {{ .of.existingConfigMap }}, items: [{key: {{ .of.key }}, path: {{ .path }}}]}
{{- end }}
{{- end }}

{{/* The names of the Secrets of clients. */}}
{{- define "envoy-cimd.clientSecrets" -}}
{{- $names := list }}
{{- range .Values.clients }}
{{- if .existingSecret }}
{{- $names = append $names .existingSecret }}
{{- end }}
{{- end }}
{{- $names | uniq | toJson }}
{{- end }}

{{/* A Secret's name may be no name of a volume. */}}
{{- define "envoy-cimd.clientVolume" -}}
{{- printf "envoy-cimd-client-%s" (sha256sum . | trunc 12) }}
{{- end }}

{{/* What every pod of the chart is in: root, component. */}}
{{- define "envoy-cimd.deployment" -}}
{{- $values := .root.Values }}
{{- $pod := include "envoy-cimd.pod" . | fromJson }}
{{- $isServe := eq .component "serve" }}
{{- $withEnvoy := and $isServe (eq $values.mode "sidecar") }}
{{- $container := include "envoy-cimd.container" (merge (dict "adminPort" "admin" "securityContext" dict) .) }}
{{- $isFile := and (eq .component (include "envoy-cimd.exchange" .root)) (eq $values.store.type "file") }}
{{- $labels := include "envoy-cimd.labels" . | fromYaml }}
{{- $scraped := dict "prometheus.io/scrape" "true" "prometheus.io/port" "9002" }}
{{- $annotations := merge (dict) $pod.podAnnotations (ternary dict $scraped $values.serviceMonitor.enabled) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "envoy-cimd.named" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "envoy-cimd.labels" . | nindent 4 }}
spec:
  replicas: {{ ternary $values.replicas $values.choreographer.replicas $isServe }}
  selector:
    matchLabels:
      {{- include "envoy-cimd.selectorLabels" . | nindent 6 }}
  strategy:
    {{- if $isFile }}
    # The file is one process's: the old one must have gone.
    type: Recreate
    {{- else }}
    rollingUpdate: {maxUnavailable: 0, maxSurge: 1}
    {{- end }}
  template:
    metadata:
      labels:
        {{- toYaml (merge (dict) $labels $pod.podLabels) | nindent 8 }}
      annotations:
        # Routes and clients are read again while it runs; other settings need a restart.
        checksum/settings: {{ include "envoy-cimd.settings" . | sha256sum }}
        {{- with $annotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "envoy-cimd.serviceAccountName" . }}
      automountServiceAccountToken: false
      # Or Kubernetes would make variables that begin with ENVOY_CIMD_.
      enableServiceLinks: false
      # More than all that a stop may take, or an exchange is cut off and its code is lost.
      terminationGracePeriodSeconds: {{ include "envoy-cimd.grace" . }}
      securityContext:
        {{- toYaml $values.podSecurityContext | nindent 8 }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with $pod.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $pod.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $pod.tolerations }}
      tolerations:
        {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- with $pod.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if not (hasKey $pod "topologySpreadConstraints") }}
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector:
          matchLabels:
            {{- include "envoy-cimd.selectorLabels" . | nindent 12 }}
      {{- else if $pod.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- toYaml $pod.topologySpreadConstraints | nindent 6 }}
      {{- end }}
      {{- if $withEnvoy }}
      # A sidecar in Kubernetes's sense: it is there before Envoy, and goes after it.
      initContainers:
      - restartPolicy: Always
        {{- $container | nindent 8 }}
      containers:
      - {{ include "envoy-cimd.envoy" .root | nindent 8 | trim }}
      {{- else }}
      containers:
      - {{ $container | nindent 8 | trim }}
      {{- end }}
      volumes:
      {{- include "envoy-cimd.volumes" . | nindent 6 }}
      {{- if $withEnvoy }}
      - name: envoy-config
        {{- $file := dict "of" $values.envoy.config "path" "envoy.yaml" }}
        {{- include "envoy-cimd.oneKey" $file | nindent 8 }}
      - name: envoy-tls
        secret: {secretName: {{ $values.envoy.tls.existingSecret }}, defaultMode: 0440}
      {{- end }}
{{- end }}

{{- define "envoy-cimd.envoy" -}}
{{- $envoy := .Values.envoy -}}
name: envoy
image: {{ include "envoy-cimd.image" (dict "root" . "image" $envoy.image) | quote }}
imagePullPolicy: {{ $envoy.image.pullPolicy }}
command: [envoy]
args:
- --config-path
- /etc/envoy/config/envoy.yaml
- --disable-hot-restart
{{- range $envoy.extraArgs }}
- {{ . | quote }}
{{- end }}
ports:
- {name: https, containerPort: {{ $envoy.httpsPort }}}
# Its admin interface is on loopback.
readinessProbe:
  tcpSocket: {port: https}
  periodSeconds: 5
lifecycle:
  # SIGTERM ends Envoy at once: by then nobody should send here any more.
  preStop:
    sleep: {seconds: {{ $envoy.drainSeconds }}}
resources:
  {{- toYaml $envoy.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
- {name: envoy-config, mountPath: /etc/envoy/config, readOnly: true}
- {name: envoy-tls, mountPath: /etc/envoy/tls, readOnly: true}
- {name: envoy-cimd-socket, mountPath: /run/envoy-cimd}
{{- with $envoy.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
