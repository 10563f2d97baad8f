{{/* What names begin with; accounts are called <name>-<kind>, so it leaves room. */}}
{{- define "leasehold.fullname" -}}
{{- $name := .Values.fullnameOverride | default (contains "leasehold" .Release.Name | ternary .Release.Name (printf "%s-leasehold" .Release.Name)) -}}
{{- if gt (len $name) 40 }}{{ fail (printf "the name %q is longer than 40 characters: set fullnameOverride" $name) }}{{ end -}}
{{- $name -}}
{{- end }}

{{/* What the Pods are found by. */}}
{{- define "leasehold.selector" -}}
app.kubernetes.io/name: leasehold
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "leasehold.labels" -}}
{{ include "leasehold.selector" . }}
app.kubernetes.io/part-of: leasehold
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "leasehold.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "leasehold.instance" -}}
{{ .Values.configuration.instance | default (include "leasehold.fullname" .) }}
{{- end }}

{{/* Where the Leases are. */}}
{{- define "leasehold.leases" -}}
{{ dig "leases" "namespace" .Release.Namespace .Values.configuration }}
{{- end }}

{{/* Of the Service, the Secret and the configurations of webhooks. */}}
{{- define "leasehold.webhooks" -}}
{{ dig "webhooks" "name" (printf "%s-webhooks" (include "leasehold.fullname" .)) .Values.configuration }}
{{- end }}

{{- define "leasehold.priorityClass" -}}
{{- $own := .Values.priorityClass.create | ternary (include "leasehold.fullname" .) "" -}}
{{ .Values.priorityClass.name | default $own }}
{{- end }}

{{/* The kinds as leasehold.yaml lists them, each with its account: JSON. */}}
{{- define "leasehold.kinds" -}}
{{- $kinds := list }}
{{- range $name, $said := .Values.kinds }}
{{- if and $said (dig "enabled" true $said) }}
{{- $kind := omit $said "enabled" }}
{{- if not (hasKey $kind "serviceAccount") }}
{{- $kind = set $kind "serviceAccount" (printf "%s-%s" (include "leasehold.fullname" $) $name) }}
{{- end }}
{{- with dig "reconciler" "compose" "" $kind }}
{{- if not (get (include "leasehold.compositions" $ | fromJson) .) }}
{{- fail (printf "kinds.%s.reconciler.compose: there is no composition %q; write it at compositions.%s" $name . (trimSuffix ".yaml" .)) }}
{{- end }}
{{- end }}
{{- $kinds = append $kinds $kind }}
{{- end }}
{{- end }}
{{- if not $kinds }}{{ fail "kinds: none is left; at least one kind must be enabled" }}{{ end }}
{{- toJson $kinds }}
{{- end }}

{{/* The compositions by file, as text: JSON. */}}
{{- define "leasehold.compositions" -}}
{{- $files := dict }}
{{- range $path, $_ := .Files.Glob "files/compositions/*.yaml" }}
{{- $_ := set $files (base $path) ($.Files.Get $path) }}
{{- end }}
{{- range $name, $said := .Values.compositions }}
{{- $_ := set $files (printf "%s.yaml" $name) (kindIs "string" $said | ternary $said (toYaml $said)) }}
{{- end }}
{{- toJson $files }}
{{- end }}

{{/* leasehold.yaml. */}}
{{- define "leasehold.configuration" -}}
{{- $config := deepCopy .Values.configuration }}
{{- $_ := set $config "apiVersion" "leasehold.dev/v1alpha1" }}
{{- $_ := set $config "kind" "Configuration" }}
{{- $_ := set $config "instance" (include "leasehold.instance" .) }}
{{- $_ := set $config "leases" (set ($config.leases | default dict) "namespace" (include "leasehold.leases" .)) }}
{{- /* The section alone would switch webhooks on. */}}
{{- $webhooks := mustMergeOverwrite (dict "enabled" false) ($config.webhooks | default dict) }}
{{- $_ := set $config "webhooks" (set $webhooks "name" (include "leasehold.webhooks" .)) }}
{{- $_ := set $config "kinds" (include "leasehold.kinds" . | fromJsonArray) }}
{{- toYaml $config }}
{{- end }}

{{/* The files that the replicas read: leasehold.yaml and the compositions that it names. */}}
{{- define "leasehold.files" -}}
{{- $files := dict "leasehold.yaml" (include "leasehold.configuration" .) }}
{{- $compositions := include "leasehold.compositions" . | fromJson }}
{{- range $kind := include "leasehold.kinds" . | fromJsonArray }}
{{- with dig "reconciler" "compose" "" $kind }}
{{- $_ := set $files . (get $compositions .) }}
{{- end }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{/* Another content is another name: no replica of an older generation reads a newer file. */}}
{{- define "leasehold.configMap" -}}
{{ include "leasehold.fullname" . }}-{{ include "leasehold.files" . | sha256sum | trunc 10 }}
{{- end }}
